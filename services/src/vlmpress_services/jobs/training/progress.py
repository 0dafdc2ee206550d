"""How far a training run is, as numbers, from what Trainer tells its callbacks."""

import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

NUM_PACE_STEPS = 20


@dataclass(frozen=True, kw_only=True, slots=True)
class StepReport:
    """State of a run after a step.

    Attributes:
        stage: Index of the step's stage, from 0.
        num_stages: Of the whole run.
        step: Steps done.
        num_steps: Of the whole run.
        loss: Of the last logged step, nats.
        tokens_per_second: Since the log before it, all workers together.
        seconds_left: At the pace of the last steps; None until there is one.
    """

    stage: int
    num_stages: int
    step: int
    num_steps: int
    loss: float
    tokens_per_second: float
    seconds_left: float | None


class StepReporter(TrainerCallback):
    """Reports whenever Trainer logs a loss.

    Args:
        report: Called on the first rank.
        num_stages: Of the run.
    """

    def __init__(self, report: Callable[[StepReport], None], num_stages: int) -> None:
        self._report, self._num_stages = report, num_stages
        # Times of the ends of the last steps; the first step of a process is slower than the others.
        self._ends_s: deque[float] = deque(maxlen=NUM_PACE_STEPS + 1)

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Takes the time."""
        self._ends_s.append(time.monotonic())

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float] | None = None,
        **kwargs: Any,
    ) -> None:
        """Reports on the first rank."""
        if logs is None or "loss" not in logs or not state.is_world_process_zero:
            return
        self._report(
            StepReport(
                stage=int(logs["stage"]) - 1,
                num_stages=self._num_stages,
                step=state.global_step,
                num_steps=state.max_steps,
                loss=float(logs["loss"]),
                tokens_per_second=float(logs["tokens_per_second"]),
                seconds_left=self._seconds_left(state.max_steps - state.global_step),
            )
        )

    def _seconds_left(self, num_steps: int) -> float | None:
        if len(self._ends_s) < 2:
            return None
        pace_s = (self._ends_s[-1] - self._ends_s[0]) / (len(self._ends_s) - 1)
        return num_steps * pace_s
