"""One optimizer step after another: AdamW, warmup and cosine, clipping, a check of the loss."""

import math
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn

from verbdistill.config import DistillConfig
from verbdistill.errors import NonFiniteLossError


def lr_factor(step: int, num_steps: int, num_warmup_steps: int, min_ratio: float) -> float:
    """Share of the peak learning rate at a 0-based step: linear warmup, then a cosine down to `min_ratio`."""
    num_warmup_steps = min(num_warmup_steps, num_steps // 2)
    if step < num_warmup_steps:
        return (step + 1) / num_warmup_steps
    position = (step - num_warmup_steps) / max(1, num_steps - num_warmup_steps)
    return min_ratio + (1 - min_ratio) * (1 + math.cos(math.pi * min(1.0, position))) / 2


def check_finite(value: float, phase: str, step: int) -> float:
    """Gives `value`; raises NonFiniteLossError with the phase and the global step if it is NaN or infinite."""
    if not math.isfinite(value):
        raise NonFiniteLossError(f"{phase}: expected a finite loss at step {step}, got {value}")
    return value


class Updater:
    """AdamW over groups of parameters, each clipped alone so that their updates stay independent."""

    def __init__(
        self,
        groups: Sequence[Iterable[nn.Parameter]],
        *,
        phase: str,
        first_step: int,
        num_steps: int,
        peak_lr: float,
        config: DistillConfig,
    ) -> None:
        self._groups = [[parameter for parameter in group if parameter.requires_grad] for group in groups]
        everything = [parameter for group in self._groups for parameter in group]
        matrices = [parameter for parameter in everything if parameter.ndim > 1]
        vectors = [parameter for parameter in everything if parameter.ndim <= 1]
        self._optimizer = torch.optim.AdamW(
            [{"params": matrices, "weight_decay": config.weight_decay}, {"params": vectors, "weight_decay": 0.0}],
            lr=peak_lr,
            betas=config.betas,
            fused=True,
        )
        self._phase = phase
        self._first_step = first_step
        self._num_steps = num_steps
        self._peak_lr = peak_lr
        self._config = config
        self._done = 0

    def step(self, loss: Tensor) -> float:
        """Moves the parameters down the loss's gradient; gives the loss.

        Raises:
            NonFiniteLossError: The loss is NaN or infinite; the parameters are as before the step.
        """
        value = check_finite(float(loss.detach()), self._phase, self._first_step + self._done)
        factor = lr_factor(self._done, self._num_steps, self._config.num_warmup_steps, self._config.min_lr_ratio)
        for group in self._optimizer.param_groups:
            group["lr"] = self._peak_lr * factor
        self._optimizer.zero_grad(set_to_none=True)
        loss.backward()
        for parameters in self._groups:
            nn.utils.clip_grad_norm_(parameters, self._config.max_grad_norm)
        self._optimizer.step()
        self._done += 1
        return value
