"""Where tensors are and how a model is set while it is read."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from verbdistill.data.batches import Batch, PairBatch
from verbdistill.losses.heads import Head
from verbdistill.models.parts import head_of
from verbdistill.teachers.teacher import TeacherAnswer, TruncatedAnswer

Answer = TeacherAnswer | TruncatedAnswer


def device_of(model: nn.Module) -> torch.device:
    """Where a model's language head is."""
    return head_of(model).weight.device


def placed(batch: Batch, device: torch.device) -> dict[str, Tensor]:
    """A micro-batch on a device."""
    return {name: value.to(device) for name, value in batch.items()}


def as_pair(batch: Batch | PairBatch) -> PairBatch:
    """A micro-batch for both, where one suits both."""
    return batch if isinstance(batch, PairBatch) else PairBatch(teacher=batch, student=batch)


def placed_answer(answer: Answer, device: torch.device, rows: Tensor | None) -> Answer:
    """A teacher's answer on a device; `rows` of it, [M], or all."""

    def take(parts: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        moved = [part.to(device) for part in parts]
        return tuple(moved if rows is None else [part[rows.to(device)] for part in moved])

    if isinstance(answer, TruncatedAnswer):
        return TruncatedAnswer(
            words=take(answer.words),
            log_probabilities=take(answer.log_probabilities),
            labels=take((answer.labels,))[0],
        )
    *targets, last = take((*answer.targets, answer.last))
    return TeacherAnswer(targets=tuple(targets), last=last, labels=take((answer.labels,))[0])


def placed_head(head: Head, device: torch.device) -> Head:
    """A head on a device; its own tensors where it is there already."""
    return Head(head.weight.to(device), None if head.bias is None else head.bias.to(device))


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Without dropout; the model's mode is restored."""
    training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(training)
