"""Puts a model into the stage that a step belongs to."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from stagetrain.attachment import Attachment
from stagetrain.errors import ScheduleError
from stagetrain.schedule import Schedule, Stage

Progress = Callable[[int, int, str], None]


@dataclass(frozen=True, slots=True)
class StageEntry:
    """A stage that a run entered: its first optimizer step here, its index and itself."""

    step: int
    index: int
    stage: Stage


class StageSwitch:
    """Sets pooling and the trainable parameters of a model by optimizer step.

    Args:
        model: The model; parameters that require a gradient now are those that can train.
        schedule: Its stages.
        num_steps: Length of the run.
        attachment: Needed when a stage pools.

    Raises:
        ScheduleError: A stage would train nothing, or pools at a layer the decoder does not have.
    """

    def __init__(
        self, model: torch.nn.Module, schedule: Schedule, num_steps: int, attachment: Attachment | None
    ) -> None:
        self._schedule = schedule
        self._num_steps = num_steps
        self._attachment = attachment
        self._parameters = [(name, value) for name, value in model.named_parameters() if value.requires_grad]
        self.log: list[StageEntry] = []
        for index, stage in enumerate(schedule.stages):
            if not any(_trains(name, stage) for name, _ in self._parameters):
                raise ScheduleError(
                    f"schedule {schedule.name}: stage {index}: expected trainable parameters whose names begin with"
                    f" {' or '.join(stage.trainable) or 'anything'}, found none"
                )
            # A stage that is not possible must not wait for its turn to say so.
            self._pool(stage)

    def enter(self, step: int) -> Stage:
        """Makes the model what `step` trains."""
        index = self._schedule.stage_index(step, self._num_steps)
        stage = self._schedule.stages[index]
        if self.log and self.log[-1].index == index:
            return stage
        self.log.append(StageEntry(step, index, stage))
        for name, parameter in self._parameters:
            parameter.requires_grad_(_trains(name, stage))
        self._pool(stage)
        return stage

    def _pool(self, stage: Stage) -> None:
        if self._attachment is not None:
            if stage.compression is None:
                self._attachment.clear()
            else:
                self._attachment.set(stage.compression)


class StageCallback(TrainerCallback):
    """Before each step: the stage and the random state of that step; after it: progress."""

    def __init__(self, switch: StageSwitch, seed: int, losses: list[float], on_progress: Progress | None) -> None:
        self._switch = switch
        self._seed = seed
        self._losses = losses
        self._on_progress = on_progress

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Enters the step's stage; dropout follows from (seed, step) alone."""
        torch.manual_seed((self._seed << 32) + state.global_step)
        self._switch.enter(state.global_step)

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Tells how far the run is."""
        if self._on_progress is not None:
            note = f"stage {self._switch.log[-1].index + 1} loss {self._losses[-1]:.3f}"
            self._on_progress(state.global_step, state.max_steps, note)


@contextmanager
def borrowed(model: Any) -> Iterator[None]:
    """Gives the model back as it came: gradients wanted, training mode, and what its configuration says of caching.

    A KV cache is of no use in training; the configuration must not remember that.
    """
    wanted = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    training = model.training
    configs = {id(config): config for config in (model.config, model.config.get_text_config())}.values()
    caching = [(config, getattr(config, "use_cache", None), hasattr(config, "use_cache")) for config in configs]
    for config in configs:
        config.use_cache = False
    try:
        yield
    finally:
        for parameter, wants in wanted:
            parameter.requires_grad_(wants)
        for config, value, present in caching:
            if present:
                config.use_cache = value
            else:
                del config.use_cache
        model.train(training)


def _trains(name: str, stage: Stage) -> bool:
    return not stage.trainable or name.startswith(stage.trainable)
