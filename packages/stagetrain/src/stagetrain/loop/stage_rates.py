"""Learning rates of a schedule's stages, by optimizer step."""

from collections.abc import Callable, Sequence
from itertools import pairwise

from stagetrain.errors import ConfigError
from stagetrain.schedules.schedule import Schedule

Factor = Callable[[int], float]
"""Share of the peak learning rate by step, from 0."""


def stage_factors(schedule: Schedule, num_steps: int, factors_of: Callable[[int], Sequence[Factor]]) -> list[Factor]:
    """Factor of each parameter group in a run of `num_steps`.

    Args:
        schedule: Its stages scale the curve; where it restarts, each has a curve of its own length.
        num_steps: Of the run.
        factors_of: Curves of the parameter groups over so many steps.
    """
    borders = schedule.borders(num_steps) if schedule.restarts else (0, num_steps)
    # A stage without a step has no curve; none is asked for.
    parts = [factors_of(max(1, last - first)) for first, last in pairwise(borders)]

    def factor_of(group: int) -> Factor:
        def factor(step: int) -> float:
            index = schedule.stage_index(step, num_steps)
            part = index if schedule.restarts else 0
            return parts[part][group](step - borders[part]) * schedule.stages[index].learning_rate_scale

        return factor

    return [factor_of(group) for group in range(len(parts[0]))]


def check_any_scheduler(schedule: Schedule, name: str) -> None:
    """Refuses stages that change learning rates which do not follow from the step.

    Raises:
        ConfigError: Names the kind of learning rates.
    """
    if schedule.restarts or any(stage.learning_rate_scale != 1 for stage in schedule.stages):
        raise ConfigError(
            f"training: lr_scheduler_type: expected one that follows from the step for stages with a"
            f" learning_rate_scale or restarts, got {name}"
        )
