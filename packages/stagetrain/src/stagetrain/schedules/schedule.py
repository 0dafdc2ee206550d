"""Stages of a training run."""

import math
from dataclasses import dataclass
from itertools import accumulate

from stagetrain.errors import ScheduleError
from stagetrain.schedules.setting import CompressionSetting


@dataclass(frozen=True, kw_only=True, slots=True)
class Stage:
    """A part of a run with one way of compressing and one set of parameters.

    Attributes:
        fraction: Share of the optimizer steps, in (0, 1].
        compression: How visual tokens are compressed; None: not at all.
        trainable: Prefixes of names of the parameters that train, or the names of groups ("vision", "connectors",
            "language", see `stagetrain.loop.parameter_groups`); empty: all that required a gradient at the start.
        learning_rate_scale: Factor on the run's peak learning rate.
        batch_size_scale: Factor on the run's batch size.
    """

    fraction: float
    compression: CompressionSetting | None = None
    trainable: tuple[str, ...] = ()
    learning_rate_scale: float = 1.0
    batch_size_scale: float = 1.0

    def __post_init__(self) -> None:
        if not 0 < self.fraction <= 1:
            raise ScheduleError(f"stage: fraction: expected a number in (0, 1], got {self.fraction}")
        for name in ("learning_rate_scale", "batch_size_scale"):
            value = getattr(self, name)
            if not (value > 0 and math.isfinite(value)):
                raise ScheduleError(f"stage: {name}: expected a positive number, got {value}")

    def batch_size(self, run_batch_size: int) -> int:
        """The stage's batch size in a run with batches of `run_batch_size`.

        Raises:
            ScheduleError: It is not a whole number.
        """
        scaled = run_batch_size * self.batch_size_scale
        whole = round(scaled)
        if whole < 1 or abs(scaled - whole) > 1e-6:
            raise ScheduleError(
                f"stage: batch_size_scale: expected a factor that makes batches of {run_batch_size} a whole number of"
                f" samples, got {self.batch_size_scale}"
            )
        return whole


@dataclass(frozen=True, slots=True)
class Schedule:
    """Named stages in order; their fractions sum to 1.

    Attributes:
        name: What messages call it.
        stages: At least one.
        restarts: Whether every stage begins as a run of its own would: the learning rate with its warmup, the
            optimizer without moments, the data with a new epoch.
    """

    name: str
    stages: tuple[Stage, ...]
    restarts: bool = False

    def __post_init__(self) -> None:
        if not self.name.isprintable():
            raise ScheduleError(f"schedule: expected a printable name, got {self.name!r:.80}")
        if not self.stages:
            raise ScheduleError(f"schedule {self.name}: expected at least one stage, got none")
        total = sum(stage.fraction for stage in self.stages)
        if abs(total - 1) > 1e-6:
            raise ScheduleError(f"schedule {self.name}: expected fractions that sum to 1, got {total}")

    def stage_index(self, step: int, num_steps: int) -> int:
        """Index of the stage that optimizer step `step` (from 0) of `num_steps` belongs to.

        A stage ends before the step nearest to its cumulated fraction of the run (half rounds up);
        in a run with few steps a stage may be empty. Steps past the end belong to the last stage.

        Raises:
            ScheduleError: `step` is negative or `num_steps` not positive.
        """
        if step < 0 or num_steps < 1:
            raise ScheduleError(f"schedule {self.name}: expected a step of a run, got {step} of {num_steps}")
        return sum(step >= first for first in self.borders(num_steps)[1:-1])

    def borders(self, num_steps: int) -> tuple[int, ...]:
        """First step of every stage in a run of `num_steps`, and `num_steps` itself."""
        ends = accumulate(stage.fraction for stage in self.stages[:-1])
        # The small constant keeps sums such as 3 * (1/3) on the side of the exact value.
        inner = (min(num_steps, math.floor(end * num_steps + 0.5 + 1e-9)) for end in ends)
        return (0, *inner, num_steps)

    @property
    def compresses(self) -> bool:
        """Whether any stage compresses."""
        return any(stage.compression is not None for stage in self.stages)

    @property
    def kept_compression(self) -> CompressionSetting | None:
        """What the trained model goes on compressing with: the last stage's setting."""
        return self.stages[-1].compression
