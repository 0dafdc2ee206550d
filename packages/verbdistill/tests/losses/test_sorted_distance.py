import pytest
import torch

from verbdistill.losses.sorted_distance import last_sorted_distance, pairwise_sorted_distance


def slow_distance(theirs, ours):
    sides = [sorted(logits.exp() / logits.exp().sum(), reverse=True) for logits in (theirs, ours)]
    size = max(len(side) for side in sides)
    padded = [side + [torch.zeros((), dtype=torch.float64)] * (size - len(side)) for side in sides]
    return sum((p - q).abs() for p, q in zip(*padded, strict=True))


@pytest.mark.parametrize("words", [11, (11, 7), (7, 12)])
def test_sums_and_gradients(case, words, logits_bytes, check_pairs, drawn):
    pair = case(5, words, (5, 4), (3, 2), bias=True)
    check_pairs(
        lambda: pairwise_sorted_distance(
            pair.teacher, pair.teacher_head, pair.student, pair.student_head, logits_bytes=logits_bytes
        ),
        pair.every_pair(slow_distance),
        pair.student,
        drawn(2, 3, seed=5).abs(),
    )


@pytest.mark.parametrize("words", [(11, 7), (7, 12)])
def test_last_value_and_gradients(case, words, logits_bytes, check_last):
    pair = case(5, words, (5, 4), (1, 1), bias=True)
    head = pair.student_head
    inputs = [*pair.student, head.weight.requires_grad_(), head.bias.requires_grad_()]
    check_last(
        lambda: last_sorted_distance(
            pair.teacher[0], pair.teacher_head, pair.student[0], head, logits_bytes=logits_bytes
        ),
        pair.every_pair(slow_distance).squeeze() / 5,
        inputs,
    )


def test_order_of_words_does_not_count(case, drawn):
    pair = case(5, 9, (4, 4), (1, 1))
    shuffled = pair.teacher_head.rows(torch.randperm(9, generator=torch.Generator().manual_seed(0)))
    assert float(last_sorted_distance(pair.teacher[0], pair.teacher_head, pair.teacher[0], shuffled)) == pytest.approx(
        0
    )
