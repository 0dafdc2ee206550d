"""How many questions a model answers right, greedily."""

from collections.abc import Callable, Sequence
from typing import Any

import torch

from stagetrain import Sample
from vlmpress.data import question_type

IGNORED = -100


@torch.no_grad()
def accuracy(
    model: Any, make_batch: Callable[..., Any], samples: Sequence[Sample], batch: int = 50
) -> dict[str, float]:
    """Share of questions answered exactly, end token included: of all and by question type.

    All questions of an image are packed in one row. An answer is right when every token of it is the
    most likely one after those before it, which is when greedy decoding gives it.
    """
    model.eval()
    hits: dict[str, list[bool]] = {"all": []}
    for start in range(0, len(samples), batch):
        part = [samples[index] for index in range(start, min(start + batch, len(samples)))]
        tensors = make_batch(part)
        labels = tensors.pop("labels")
        logits = model(**tensors, use_cache=False).logits
        kinds = [[question_type(record.turns[0].answer) for record in sample.records] for sample in part]
        for row, row_kinds in enumerate(kinds):
            right = _right(logits[row], labels[row], _prefix_length(tensors["input_ids"][row], model))
            for kind, hit in zip(row_kinds, right, strict=True):
                hits["all"].append(hit)
                hits.setdefault(kind, []).append(hit)
    return {kind: sum(values) / len(values) for kind, values in hits.items()}


def _prefix_length(ids: torch.Tensor, model: Any) -> int:
    return int((ids == model.config.image_token_id).nonzero().max()) + 1


def _right(logits: torch.Tensor, labels: torch.Tensor, prefix: int) -> list[bool]:
    """Whether each answer of a row is right; logits [T', V] end as labels [T] do, T' <= T where images shrank."""
    labels = labels[prefix + 1 :]
    right = logits[-len(labels) - 1 : -1].argmax(-1) == labels
    is_answer = labels != IGNORED
    begins = is_answer & ~torch.cat([is_answer.new_zeros(1), is_answer[:-1]])
    numbers = begins.cumsum(0)[is_answer] - 1
    wrong = torch.zeros(int(begins.sum())).index_add(0, numbers, (~right[is_answer]).float())
    return (wrong == 0).tolist()
