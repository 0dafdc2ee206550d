import pytest
import torch

from verbdistill.errors import BatchError
from verbdistill.losses.feature_l2 import pairwise_feature_l2


def test_sums_and_gradients(case, check_pairs, drawn):
    pair = case(7, 3, (5, 5), (4, 2))
    expected = torch.stack(
        [
            torch.stack(
                [sum((a - b) ** 2 for a, b in zip(t.flatten(), s.flatten(), strict=True)) / 5 for t in pair.teacher]
            )
            for s in pair.student
        ]
    )
    check_pairs(lambda: pairwise_feature_l2(pair.teacher, pair.student), expected, pair.student, drawn(2, 4, seed=1))


def test_widths_must_agree(case):
    pair = case(7, 3, (5, 4), (2, 1))
    with pytest.raises(BatchError, match=r"one width of teacher and student, got \[4, 5\]"):
        pairwise_feature_l2(pair.teacher, pair.student)
