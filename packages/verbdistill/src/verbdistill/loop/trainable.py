"""Which of a student's parameters train, for how long."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

from verbdistill.models.parts import base_model, language_model, vision_tower


@contextmanager
def trained_in_full(student: nn.Module, *, with_vision_tower: bool) -> Iterator[None]:
    """Everything trains, the vision tower only if asked; flags and mode are restored afterwards."""
    with _restored(student):
        student.requires_grad_(True)
        vision_tower(student).requires_grad_(with_vision_tower)
        yield


@contextmanager
def trained_with_lora(student: nn.Module, rank: int, *, with_vision_tower: bool) -> Iterator[None]:
    """LoRA of alpha = rank on every linear layer of the LLM, and the projector in full; merged at the end.

    An error inside leaves the student as it was, but for what its projector learnt. Source: VLsI, Section 4.1c.
    """
    # Imported where it is used: it takes seconds, and not every run needs it.
    from peft import LoraConfig, get_peft_model

    with _restored(student):
        student.requires_grad_(True)
        language_model(student).requires_grad_(False)
        vision_tower(student).requires_grad_(with_vision_tower)
        student.get_submodule("lm_head").requires_grad_(False)
        lora = LoraConfig(r=rank, lora_alpha=rank, target_modules="all-linear", bias="none")
        adapted = get_peft_model(language_model(student), lora)
        try:
            yield
        except BaseException:
            base_model(student).language_model = adapted.unload()
            raise
        with torch.no_grad():
            base_model(student).language_model = adapted.merge_and_unload()


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
