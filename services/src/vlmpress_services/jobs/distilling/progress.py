"""How far a distillation is, as numbers, from what verbdistill tells after each step."""

import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from verbdistill import DistillConfig

NUM_PACE_STEPS = 20


@dataclass(frozen=True, kw_only=True, slots=True)
class StepReport:
    """State of a run after a step.

    Attributes:
        phase: What the step belongs to, as verbdistill calls it.
        phase_step: Steps of the phase done.
        num_phase_steps: Of the phase.
        step: Steps of the run done.
        num_steps: Of the run.
        loss: Of the step, nats or the unit of what is compared.
        seconds_left: At the pace of the last steps, which may be of another phase; None until there is one.
    """

    phase: str
    phase_step: int
    num_phase_steps: int
    step: int
    num_steps: int
    loss: float
    seconds_left: float | None


class StepReporter:
    """Takes what verbdistill's `on_progress` is told.

    Args:
        report: Called after every step.
        config: Of the run.
    """

    def __init__(self, report: Callable[[StepReport], None], config: DistillConfig) -> None:
        self._report, self._config = report, config
        # Times of the ends of the last steps.
        self._ends_s: deque[float] = deque(maxlen=NUM_PACE_STEPS + 1)

    def __call__(self, phase: str, done: int, total: int, loss: float) -> None:
        """Reports."""
        self._ends_s.append(time.monotonic())
        step, num_steps = self._config.overall(phase, done)
        self._report(
            StepReport(
                phase=phase,
                phase_step=done,
                num_phase_steps=total,
                step=step,
                num_steps=num_steps,
                loss=loss,
                seconds_left=self._seconds_left(num_steps - step),
            )
        )

    def _seconds_left(self, num_steps: int) -> float | None:
        if len(self._ends_s) < 2:
            return None
        return num_steps * (self._ends_s[-1] - self._ends_s[0]) / (len(self._ends_s) - 1)
