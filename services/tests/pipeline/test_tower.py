from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from vlmpress.data import DataError, Record, Turn
from vlmpress_services.pipeline.tower import _masked_loss, attribute_task


def _record(image, question, answer):
    return Record("x", (Path(image),), (Turn(question, answer),))


def test_common_questions_become_tasks_and_rare_ones_do_not():
    records = [_record(f"{i}.png", "what color?", ("red", "blue")[i % 2]) for i in range(150)]
    records += [_record(f"{i}.png", "Is it big?", "yes") for i in range(10)]
    records += [_record("0.png", "seen once?", "no")]
    task = attribute_task(records)
    assert task.num_classes == [2, 1]
    assert task.labels[0] == [(0, 0), (1, 0)]
    assert task.labels[1] == [(0, 1), (1, 0)]
    assert len(task.images) == 150


def test_loss_is_the_mean_of_each_questions_own_cross_entropy():
    torch.manual_seed(0)
    logits = torch.randn(3, 7)
    labels = [[(0, 1), (2, 0)], [], [(1, 2)]]
    starts = [0, 2, 5, 7]
    expected = torch.stack(
        [
            F.cross_entropy(logits[0, 0:2], torch.tensor(1)),
            F.cross_entropy(logits[0, 5:7], torch.tensor(0)),
            F.cross_entropy(logits[2, 2:5], torch.tensor(2)),
        ]
    ).mean()
    torch.testing.assert_close(_masked_loss(logits, labels, starts), expected)


def test_questions_that_never_recur_are_refused():
    with pytest.raises(DataError, match="3 questions about 3 images"):
        attribute_task([_record(f"{i}.png", f"question {i}", "yes") for i in range(3)])
