"""Learning rates of short runs from scratch; other runs use Trainer's own `lr_scheduler_type`."""

import math
from dataclasses import dataclass
from typing import Literal, get_args

from stagetrain.errors import ConfigError

CurveKind = Literal["cosine", "warmup_stable_decay", "constant"]


@dataclass(frozen=True, kw_only=True, slots=True)
class LearningRateCurve:
    """Share of the peak learning rate by optimizer step. Warmup ends one step before Trainer's, which begins with 0.

    Attributes:
        kind: "cosine" to 0, "warmup_stable_decay" (the last `decay_fraction` falls linearly to 0) or "constant".
        warmup_steps: Steps of linear warmup.
        decay_fraction: Share of the run that "warmup_stable_decay" decays in.

    Raises:
        ConfigError: A value is out of its range.
    """

    kind: CurveKind = "cosine"
    warmup_steps: int = 0
    decay_fraction: float = 0.2

    def __post_init__(self) -> None:
        checks: tuple[tuple[str, object, bool, str], ...] = (
            ("kind", self.kind, self.kind in get_args(CurveKind), f"one of {', '.join(get_args(CurveKind))}"),
            ("warmup_steps", self.warmup_steps, self.warmup_steps >= 0, "at least 0"),
            ("decay_fraction", self.decay_fraction, 0 < self.decay_fraction <= 1, "a number in (0, 1]"),
        )
        for name, value, good, expected in checks:
            if not good:
                raise ConfigError(f"learning rates: {name}: expected {expected}, got {value!r}")

    def factor(self, step: int, num_steps: int) -> float:
        """Factor of step `step` (from 0) of a run of `num_steps`, in [0, 1]."""
        if step < self.warmup_steps:
            return (step + 1) / self.warmup_steps
        if self.kind == "constant":
            return 1.0
        if self.kind == "cosine":
            progress = (step - self.warmup_steps) / max(1, num_steps - self.warmup_steps)
            return 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))
        return max(0.0, min(1.0, (num_steps - step) / max(1.0, self.decay_fraction * num_steps)))
