"""Settings of a training run and the learning rate they give."""

import math
from dataclasses import dataclass
from typing import Literal, get_args

from stagetrain.errors import ConfigError

LearningRateSchedule = Literal["cosine", "warmup_stable_decay", "constant"]


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainConfig:
    """How a run trains; AdamW.

    Attributes:
        num_steps: Optimizer steps of the whole run, all stages together.
        learning_rate: Peak of the one schedule over the whole run.
        images_per_step: Samples in a batch.
        warmup_steps: Steps of linear warmup.
        lr_schedule: "cosine" to 0, "warmup_stable_decay" (the last `decay_fraction` falls linearly to 0) or "constant".
        decay_fraction: Share of the run that "warmup_stable_decay" decays in.
        betas: AdamW's.
        weight_decay: On weights; norms and biases have none.
        max_grad_norm: Gradients are clipped to this norm; 0: never.
        seed: Of data order and dropout.
        save_every_steps: Steps between checkpoints; None: no checkpoints.
    """

    num_steps: int
    learning_rate: float
    images_per_step: int = 16
    warmup_steps: int = 0
    lr_schedule: LearningRateSchedule = "cosine"
    decay_fraction: float = 0.2
    betas: tuple[float, float] = (0.9, 0.98)
    weight_decay: float = 0.01
    max_grad_norm: float = 1.0
    seed: int = 0
    save_every_steps: int | None = None

    def __post_init__(self) -> None:
        checks: tuple[tuple[str, object, bool, str], ...] = (
            ("num_steps", self.num_steps, self.num_steps >= 1, "at least 1"),
            ("learning_rate", self.learning_rate, 0 < self.learning_rate < math.inf, "a positive number"),
            ("images_per_step", self.images_per_step, self.images_per_step >= 1, "at least 1"),
            ("warmup_steps", self.warmup_steps, self.warmup_steps >= 0, "at least 0"),
            ("lr_schedule", self.lr_schedule, self.lr_schedule in get_args(LearningRateSchedule), "a known name"),
            ("decay_fraction", self.decay_fraction, 0 < self.decay_fraction <= 1, "a number in (0, 1]"),
            ("betas", self.betas, all(0 <= beta < 1 for beta in self.betas), "two numbers in [0, 1)"),
            ("weight_decay", self.weight_decay, self.weight_decay >= 0, "at least 0"),
            ("max_grad_norm", self.max_grad_norm, self.max_grad_norm >= 0, "at least 0"),
            (
                "save_every_steps",
                self.save_every_steps,
                self.save_every_steps is None or self.save_every_steps >= 1,
                "at least 1, or none",
            ),
        )
        for name, value, good, expected in checks:
            if not good:
                raise ConfigError(f"training: {name}: expected {expected}, got {value!r}")

    def _saves_sometimes(self) -> bool:
        return self.save_every_steps is None or self.save_every_steps >= 1


def learning_rate_factor(config: TrainConfig, step: int) -> float:
    """Share of the peak learning rate that optimizer step `step` (from 0) uses, in [0, 1]."""
    if step < config.warmup_steps:
        return (step + 1) / config.warmup_steps
    if config.lr_schedule == "constant":
        return 1.0
    if config.lr_schedule == "cosine":
        progress = (step - config.warmup_steps) / max(1, config.num_steps - config.warmup_steps)
        return 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))
    left = config.num_steps - step
    return max(0.0, min(1.0, left / max(1.0, config.decay_fraction * config.num_steps)))
