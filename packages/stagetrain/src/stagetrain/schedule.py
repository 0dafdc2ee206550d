"""Stages of a training run; the schemes of the paper's Table 1."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

from stagetrain.errors import ScheduleError, UnknownSchemeError
from stagetrain.setting import CompressionSetting

PAPER_LAYERS = 32
"""Depth of the decoder that Table 1 was written for."""

_OFF = None
_POINTS: dict[str, tuple[tuple[int, int] | None, ...]] = {
    "plain": (_OFF,),
    "two_stage": ((2, 8), _OFF),
    "three_stage_deeper": ((2, 8), (16, 8), _OFF),
    "three_stage_wider": ((2, 8), (2, 2), _OFF),
    "four_stage_wider_then_deeper": ((2, 8), (2, 2), (16, 2), _OFF),
    "four_stage_deeper_then_wider": ((2, 8), (16, 8), (16, 2), _OFF),
}

TABLE_1 = tuple(name for name in _POINTS if name != "plain")
"""Names of the five schemes of Table 1."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Stage:
    """A part of a run with one way of compressing and one set of parameters.

    Attributes:
        fraction: Share of the optimizer steps, in (0, 1].
        compression: How visual tokens are compressed; None: not at all.
        trainable: Prefixes of names of the parameters that train, or the names of groups ("vision", "connectors",
            "language", see `stagetrain.parameter_groups`); empty: all that required a gradient at the start.
        learning_rate_scale: Factor on the run's one learning rate schedule.
    """

    fraction: float
    compression: CompressionSetting | None = None
    trainable: tuple[str, ...] = ()
    learning_rate_scale: float = 1.0

    def __post_init__(self) -> None:
        if not 0 < self.fraction <= 1:
            raise ScheduleError(f"stage: fraction: expected a number in (0, 1], got {self.fraction}")
        if not (self.learning_rate_scale > 0 and math.isfinite(self.learning_rate_scale)):
            raise ScheduleError(
                f"stage: learning_rate_scale: expected a positive number, got {self.learning_rate_scale}"
            )


@dataclass(frozen=True, slots=True)
class Schedule:
    """Named stages in order; their fractions sum to 1."""

    name: str
    stages: tuple[Stage, ...]

    def __post_init__(self) -> None:
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
        ends = accumulate(stage.fraction for stage in self.stages)
        # The small constant keeps sums such as 3 * (1/3) on the side of the exact value.
        passed = sum(step >= math.floor(end * num_steps + 0.5 + 1e-9) for end in ends)
        return min(passed, len(self.stages) - 1)

    @property
    def compresses(self) -> bool:
        """Whether any stage compresses."""
        return any(stage.compression is not None for stage in self.stages)


def named_schedule(name: str, num_layers: int) -> Schedule:
    """The scheme `name`, stages of equal length, for a decoder of `num_layers`.

    Layer K of Table 1's 32 becomes max(1, round(K * num_layers / 32)), half rounding to even.

    Raises:
        UnknownSchemeError: No such scheme; `edge` needs arguments, see `edge_schedule`.
        ScheduleError: The decoder has fewer than 2 layers.
    """
    if name not in _POINTS:
        raise UnknownSchemeError(f"scheme: expected one of {', '.join(_POINTS)}, got {name!r}")
    if num_layers < 2:
        raise ScheduleError(f"scheme {name}: expected a decoder of at least 2 layers, got {num_layers}")
    points = _POINTS[name]
    stages = (
        Stage(
            fraction=1 / len(points),
            compression=None
            if point is None
            else CompressionSetting(layer=max(1, round(point[0] * num_layers / PAPER_LAYERS)), stride=point[1]),
        )
        for point in points
    )
    return Schedule(name, tuple(stages))


def edge_schedule(
    connectors: Sequence[str], fraction: float = 1 / 3, learning_rate_scales: tuple[float, float] = (1.0, 1.0)
) -> Schedule:
    """Trains what connects vision and language first, then everything; no compression.

    Args:
        connectors: Prefixes of the names of the parameters that train in the first stage.
        fraction: Share of the first stage.
        learning_rate_scales: One for each of the two stages.

    Raises:
        ScheduleError: No prefix, or a fraction outside (0, 1).
    """
    if not connectors or not 0 < fraction < 1:
        raise ScheduleError(f"scheme edge: expected prefixes and a fraction in (0, 1), got {connectors} and {fraction}")
    first, second = learning_rate_scales
    return Schedule(
        "edge",
        (
            Stage(fraction=fraction, trainable=tuple(connectors), learning_rate_scale=first),
            Stage(fraction=1 - fraction, learning_rate_scale=second),
        ),
    )
