"""Packed rows of every family give each question what it has alone."""

from pathlib import Path
from typing import Any

import pytest
import torch

from stagetrain import CompressionSetting, ConversationCollator, ImageGroups, Sample, attach
from vlmpress.data import Record, Turn

IGNORED = -100


@pytest.fixture
def records(pictures: list[Path]) -> list[Record]:
    """Questions about one image, about two, about none, and one whose marks place its images."""
    one, two = (pictures[0],), (pictures[1], pictures[2])
    turns = [
        (Turn("what is this", "red"),),
        (Turn("is it green", "no"), Turn("or blue", "yes it is")),
        (Turn("or", "it"),),
    ]
    made = [Record(f"{len(images)} {n}", images, turn) for images in (one, two) for n, turn in enumerate(turns)]
    fixed = Record("fixed", two, (Turn("is <image> this or <image> that", "that"),))
    return [*made, fixed, Record("text", (), turns[1])]


def summed_loss(model: Any, batch: dict[str, Any]) -> float:
    """Cross entropy of all answer tokens."""
    with torch.no_grad():
        return float(model(**batch).loss) * int((batch["labels"] != IGNORED).sum())


@pytest.mark.parametrize("stride", [None, 3])
def test_packed_questions_equal_each_question_alone(family: Any, records: list[Record], stride: int | None) -> None:
    model, groups = family.model(), list(ImageGroups(records))
    if stride is not None:
        attach(model).set(CompressionSetting(layer=1, stride=stride))
    collator = ConversationCollator(family.processor)
    batch = collator(groups)
    assert batch["attention_mask"].dim() == 4
    assert len(batch["input_ids"]) == len(groups) + 1  # the one with fixed images has a row of its own
    for part in (groups, *([group] for group in groups)):
        alone = [collator([Sample(one.images, (one,))]) for group in part for one in group.records]
        expected = sum(summed_loss(model, one) for one in alone)
        assert summed_loss(model, collator(part)) == pytest.approx(expected, rel=1e-5)
