"""AdamW over groups of parameters: warmup and cosine, clipping, a state that can be kept."""

import math
from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor, nn

from verbdistill.config import DistillConfig
from verbdistill.errors import CheckpointError


def lr_factor(step: int, num_steps: int, num_warmup_steps: int, min_ratio: float) -> float:
    """Share of the peak learning rate at a 0-based step: linear warmup, then a cosine down to `min_ratio`."""
    num_warmup_steps = min(num_warmup_steps, num_steps // 2)
    if step < num_warmup_steps:
        return (step + 1) / num_warmup_steps
    position = (step - num_warmup_steps) / max(1, num_steps - num_warmup_steps)
    return min_ratio + (1 - min_ratio) * (1 + math.cos(math.pi * min(1.0, position))) / 2


class Updater:
    """AdamW; each group of parameters is clipped alone, so that their updates stay independent."""

    def __init__(
        self, groups: Sequence[Iterable[nn.Parameter]], *, num_steps: int, peak_lr: float, config: DistillConfig
    ) -> None:
        self._groups = [[parameter for parameter in group if parameter.requires_grad] for group in groups]
        matrices = [parameter for parameter in self.parameters if parameter.ndim > 1]
        vectors = [parameter for parameter in self.parameters if parameter.ndim <= 1]
        self._optimizer = torch.optim.AdamW(
            [{"params": matrices, "weight_decay": config.weight_decay}, {"params": vectors, "weight_decay": 0.0}],
            lr=peak_lr,
            betas=config.betas,
            fused=True,
        )
        self._num_steps = num_steps
        self._peak_lr = peak_lr
        self._config = config

    @property
    def parameters(self) -> list[nn.Parameter]:
        """Of all groups, those that train."""
        return [parameter for group in self._groups for parameter in group]

    def zero(self) -> None:
        """Drops all gradients."""
        self._optimizer.zero_grad(set_to_none=True)

    @torch.no_grad()
    def scale(self, factor: float) -> None:
        """Multiplies all gradients."""
        torch._foreach_mul_([each.grad for each in self.parameters if each.grad is not None], factor)

    def clip(self) -> float:
        """Clips every group; gives the sum of their norms, which is finite if all gradients are."""
        norms = [nn.utils.clip_grad_norm_(group, self._config.max_grad_norm) for group in self._groups if group]
        return float(sum(float(norm) for norm in norms))

    def step(self, done: int) -> None:
        """Moves the parameters along their gradients, `done` steps being done before."""
        factor = lr_factor(done, self._num_steps, self._config.num_warmup_steps, self._config.min_lr_ratio)
        for group in self._optimizer.param_groups:
            group["lr"] = self._peak_lr * factor
        self._optimizer.step()

    def state(self) -> dict[str, Tensor]:
        """What has to be kept beside the parameters."""
        kept = self._optimizer.state_dict()["state"]
        return {f"{number}.{name}": value for number, values in kept.items() for name, value in values.items()}

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Takes over what `state` gave.

        Raises:
            CheckpointError: It is of other parameters.
        """
        values: dict[int, dict[str, Tensor]] = {}
        for key, value in state.items():
            number, _, name = key.partition(".")
            values.setdefault(int(number), {})[name] = value
        everything = {"state": values, "param_groups": self._optimizer.state_dict()["param_groups"]}
        # In the optimizer's order: matrices first.
        ordered = [each for group in self._optimizer.param_groups for each in group["params"]]
        for place, held in values.items():
            if place >= len(ordered) or any(
                value.ndim and value.shape != ordered[place].shape for value in held.values()
            ):
                raise CheckpointError(f"optimizer: expected the state of {len(ordered)} parameters, got another's")
        self._optimizer.load_state_dict(everything)
