"""Accuracy of a model on questions with known answers."""

from collections.abc import Sequence

import torch
from torch import nn

from quantpack.calibration.dataset import IGNORED, Question


@torch.no_grad()
def answer_accuracy(model: nn.Module, questions: Sequence[Question]) -> float:
    """Share of the questions whose every answer token is the most likely one, given those before it.

    That is exact match under greedy decoding: the answer, its end token included, is what the model would say.

    Args:
        model: Gives logits [B, T, V]; put into eval mode for the call.
        questions: Rows, single or in batches (`calibration.dataset.batches`).
    """
    was_training = model.training
    model.eval()
    right = total = 0
    try:
        for question in questions:
            logits = model(**question.sample).logits
            wanted = question.labels[:, 1:]
            matches = (logits[:, :-1].argmax(-1) == wanted) | (wanted == IGNORED)
            right += int(matches.all(1).sum())
            total += len(wanted)
    finally:
        model.train(was_training)
    return right / total
