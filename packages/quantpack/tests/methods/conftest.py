from collections.abc import Callable, Sequence

import numpy as np
import pytest
import torch

from quantpack.calibration.sites import Activations, Site
from quantpack.scheme import Scheme

torch.set_num_threads(1)


@pytest.fixture
def make_site() -> Callable[..., Site]:
    """A site with correlated inputs of very different sizes; `dead` inputs are always 0."""

    def make(
        scheme: Scheme,
        *,
        num_outputs: Sequence[int] = (6,),
        num_inputs: int = 20,
        num_tokens: int = 400,
        num_samples: int = 40,
        dead: Sequence[int] = (),
        seed: int = 0,
        scalable: bool = True,
        visual_weight: float = 1.0,
        dtype: torch.dtype = torch.float32,
    ) -> Site:
        generator = torch.Generator().manual_seed(seed)

        def normal(*shape: int) -> torch.Tensor:
            return torch.randn(*shape, generator=generator)

        mix = normal(num_inputs, num_inputs) / num_inputs**0.5 + 0.3 * torch.eye(num_inputs)
        inputs = normal(num_tokens, num_inputs) @ mix * normal(num_inputs).exp()
        inputs[:, list(dead)] = 0
        weights = {f"layer{i}.weight": normal(o, num_inputs).to(dtype) for i, o in enumerate(num_outputs)}
        activations = Activations(
            num_tokens=num_tokens,
            max_abs=inputs.abs().amax(0),
            mean_abs=inputs.abs().mean(0),
            second_moment=inputs.T @ inputs / num_tokens,
            samples=inputs[:num_samples],
            is_visual=torch.arange(num_samples) % 3 == 0,
        )
        return Site(
            weights=weights,
            schemes=dict.fromkeys(weights, scheme),
            activations=activations,
            scalable=scalable,
            visual_weight=visual_weight,
        )

    return make


@pytest.fixture
def slow_nearest() -> Callable[[np.ndarray, Scheme], np.ndarray]:
    """Rounds one group of a row after the other; scales as they are stored, in float32."""

    def round_group(values: np.ndarray, scheme: Scheme) -> np.ndarray:
        low, high = np.float32(min(values.min(), 0)), np.float32(max(values.max(), 0))
        lowest, highest = scheme.code_range
        scale = max(high, -low) / np.float32(highest) if scheme.symmetric else (high - low) / np.float32(highest)
        if scale == 0:
            return values * 0
        zero = 0.0 if scheme.symmetric else min(max(-np.rint(low / scale), lowest), highest)
        codes = np.clip(np.rint(values.astype(np.float32) / scale) + zero, lowest, highest)
        return (codes.astype(np.float64) - zero) * float(scale)

    def apply(weight: np.ndarray, scheme: Scheme) -> np.ndarray:
        if scheme.granularity == "tensor":
            return round_group(weight, scheme)
        size = scheme.group_size or weight.shape[1]
        rounded = np.zeros(weight.shape)
        for row in range(weight.shape[0]):
            for begin in range(0, weight.shape[1], size):
                rounded[row, begin : begin + size] = round_group(weight[row, begin : begin + size], scheme)
        return rounded

    return apply
