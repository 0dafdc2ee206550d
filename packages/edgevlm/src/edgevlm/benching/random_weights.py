"""Models with cheap weights: what they answer means nothing, what they cost is real.

Matrices are filled from one block of N(0, 0.02) numbers, each from another place of it: no zeros or
denormals, which some processors multiply at another speed, and activations of ordinary size; norms are
ones, biases zero. A 2B model takes seconds.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from edgevlm.profiling.skeletons import materialize, meta_model

_BLOCK = (1 << 20) - 3
_STD = 0.02


def random_model(config: Any, *, dtype: torch.dtype, seed: int = 0) -> Any:
    """The model of a configuration on the CPU, weights in `dtype`, buffers in their own types."""
    model = meta_model(config)
    materialize(model, _filler(dtype, seed))
    return model


def _filler(dtype: torch.dtype, seed: int) -> Callable[[str, Tensor], Tensor]:
    generator = torch.Generator().manual_seed(seed)
    block = (torch.randn(2 * _BLOCK, generator=generator) * _STD).to(dtype)
    start = 0

    def fill(name: str, parameter: Tensor) -> Tensor:
        nonlocal start
        if parameter.ndim < 2:
            value = 0.0 if name.endswith("bias") else 1.0
            return torch.full(parameter.shape, value, dtype=dtype)
        filled = torch.empty(parameter.shape, dtype=dtype)
        for piece in filled.view(-1).split(_BLOCK):
            piece.copy_(block[start : start + piece.numel()])
        start = (start + 7919) % _BLOCK
        return filled

    return fill
