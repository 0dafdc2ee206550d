"""Puts a model into the stage that a step belongs to."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from stagetrain.attaching.attachment import Attachment
from stagetrain.errors import ScheduleError
from stagetrain.loop.parameter_groups import check_selectors, selects
from stagetrain.schedules.schedule import Schedule, Stage

Progress = Callable[[int, int, str], None]


@dataclass(frozen=True, slots=True)
class StageEntry:
    """A stage that a run entered: its first optimizer step here, its index and itself."""

    step: int
    index: int
    stage: Stage


class StageSwitch:
    """Sets compression and the trainable parameters of a model by optimizer step.

    Until the first step all parameters that any stage trains require a gradient, and no others: what
    wraps the model for several processes, and the optimizer, must see them all.

    Args:
        model: The model; parameters that require a gradient now are those that can train.
        schedule: Its stages.
        num_steps: Length of the run.
        attachment: Needed when a stage compresses.

    Raises:
        ScheduleError: A stage would train nothing, or compresses at a layer the decoder does not have.
    """

    def __init__(
        self, model: torch.nn.Module, schedule: Schedule, num_steps: int, attachment: Attachment | None
    ) -> None:
        self._schedule = schedule
        self._num_steps = num_steps
        self._attachment = attachment
        # A stage that is not possible must not wait for its turn to say so; some compressors add parameters here.
        for stage in schedule.stages:
            self._compress(stage)
        if attachment is not None:
            attachment.clear()
        self._parameters = [(name, value) for name, value in model.named_parameters() if value.requires_grad]
        self.log: list[StageEntry] = []
        self._check(model)
        for name, value in self._parameters:
            value.requires_grad_(any(_trains(name, stage) for stage in schedule.stages))

    def enter(self, step: int) -> Stage:
        """Makes the model what `step` trains."""
        index = self._schedule.stage_index(step, self._num_steps)
        stage = self._schedule.stages[index]
        if self.log and self.log[-1].index == index:
            return stage
        self.log.append(StageEntry(step, index, stage))
        for name, parameter in self._parameters:
            parameter.requires_grad_(_trains(name, stage))
        self._compress(stage)
        return stage

    def begins_anew(self, step: int) -> bool:
        """Whether `step` is the first of a stage that begins as a run of its own would."""
        return self._schedule.restarts and step in self._schedule.borders(self._num_steps)

    @contextmanager
    def without_compression(self) -> Iterator[None]:
        """The plain model, then the stage's compression again."""
        if self._attachment is not None:
            self._attachment.clear()
        try:
            yield
        finally:
            if self.log:
                self._compress(self.log[-1].stage)

    def _check(self, model: torch.nn.Module) -> None:
        names = [name for name, _ in model.named_parameters()]
        for index, stage in enumerate(self._schedule.stages):
            where = f"schedule {self._schedule.name}: stage {index}: trainable"
            check_selectors(stage.trainable, names, where)
            if not any(_trains(name, stage) for name, _ in self._parameters):
                raise ScheduleError(
                    f"{where}: expected parameters that are not frozen, found none under"
                    f" {' or '.join(stage.trainable) or 'any name'}"
                )

    def _compress(self, stage: Stage) -> None:
        if self._attachment is not None:
            if stage.compression is None:
                self._attachment.clear()
            else:
                self._attachment.set(stage.compression)


def unadapted(model: Any) -> Any:
    """The model inside PEFT's wrapper, or the model itself."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


@contextmanager
def borrowed(model: Any) -> Iterator[None]:
    """Gives the model back as it came: gradients wanted, modes, its forward, what its configuration says of caching.

    A KV cache is of no use in training; the configuration must not remember that.
    """
    wanted = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    training, checkpointing = model.training, getattr(model, "is_activation_checkpointing", False)
    configs = {id(config): config for config in (model.config, model.config.get_text_config())}.values()
    caching = [(config, getattr(config, "use_cache", None), hasattr(config, "use_cache")) for config in configs]
    own_forward = model.__dict__.get("forward")
    for config in configs:
        config.use_cache = False
    try:
        yield
    finally:
        # Mixed precision wraps the method on the instance.
        model.__dict__.pop("_original_forward", None)
        if own_forward is None:
            model.__dict__.pop("forward", None)
        else:
            model.forward = own_forward
        if getattr(model, "is_activation_checkpointing", False) and not checkpointing:
            model.activation_checkpointing_disable()
            model.disable_input_require_grads()
        for parameter, wants in wanted:
            parameter.requires_grad_(wants)
        for config, value, present in caching:
            if present:
                config.use_cache = value
            else:
                del config.use_cache
        model.train(training)


def _trains(name: str, stage: Stage) -> bool:
    return not stage.trainable or selects(stage.trainable, name)
