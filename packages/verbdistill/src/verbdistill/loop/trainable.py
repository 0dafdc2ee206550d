"""Which of a student's parameters train, for how long, and what is kept of its forward."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, cast

import torch
from torch import nn

from verbdistill.errors import UnsupportedModelError
from verbdistill.models.parts import language_head, language_model, projector, vision_part


@contextmanager
def trained_in_full(student: nn.Module, *, with_vision_tower: bool) -> Iterator[None]:
    """Everything trains, the vision tower only if asked; flags and mode are restored afterwards."""
    with _restored(student):
        student.requires_grad_(True)
        _set_vision(student, with_vision_tower)
        yield


@contextmanager
def trained_with_lora(student: nn.Module, rank: int, *, with_vision_tower: bool) -> Iterator[None]:
    """LoRA of alpha = rank on every linear layer of the LLM, and the projector in full; merged at the end.

    An error inside leaves the student as it was, but for what its projector learnt. Source: VLsI, Section 4.1c.
    """
    # Imported where it is used: it takes seconds, and not every run needs it.
    from peft import LoraConfig, get_peft_model

    decoder = cast(Any, language_model(student))
    with _restored(student):
        student.requires_grad_(True)
        decoder.requires_grad_(False)
        language_head(student).requires_grad_(False)
        _set_vision(student, with_vision_tower)
        lora = LoraConfig(r=rank, lora_alpha=rank, target_modules="all-linear", bias="none")
        # The adapters are put into the decoder itself, and taken out of it again.
        adapted = get_peft_model(decoder, lora)
        try:
            yield
        except BaseException:
            adapted.unload()
            raise
        with torch.no_grad():
            adapted.merge_and_unload()


@contextmanager
def checkpointed(student: nn.Module, enabled: bool) -> Iterator[None]:
    """Gradient checkpointing, where `enabled`: a layer's activations are computed again in backward.

    Raises:
        UnsupportedModelError: It was asked for and the model has none.
    """
    model = cast(Any, student)
    if not enabled or model.is_activation_checkpointing:
        yield
        return
    try:
        model.activation_checkpointing_enable({"use_reentrant": False})
    except (AttributeError, ValueError) as error:
        raise UnsupportedModelError(
            f"{type(student).__name__}: expected a model with gradient checkpointing, got {error}"
        ) from error
    try:
        yield
    finally:
        model.activation_checkpointing_disable()


def _set_vision(student: nn.Module, trains: bool) -> None:
    tower = vision_part(student)
    if tower is not None:
        tower.requires_grad_(trains)
    # In some models it is part of the tower.
    between = projector(student)
    if between is not None:
        between.requires_grad_(True)


@contextmanager
def _restored(student: nn.Module) -> Iterator[None]:
    flags = {name: parameter.requires_grad for name, parameter in student.named_parameters()}
    training = student.training
    student.train()
    try:
        yield
    finally:
        student.train(training)
        for name, parameter in student.named_parameters():
            parameter.requires_grad_(flags[name])
