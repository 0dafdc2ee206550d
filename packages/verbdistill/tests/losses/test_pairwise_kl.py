import pytest
import torch

from verbdistill.errors import BatchError, VocabularyMismatchError
from verbdistill.losses.heads import Head
from verbdistill.losses.pairwise_kl import last_kl, pairwise_kl


def slow_kl(theirs, ours):
    """Of two rows of logits, word by word."""
    p, q = theirs.exp() / theirs.exp().sum(), ours.exp() / ours.exp().sum()
    return sum(p[word] * (p[word] / q[word]).log() for word in range(len(p)))


def test_sums_and_gradients(shaped, logits_bytes, check_pairs, drawn):
    weights = drawn(len(shaped.student), len(shaped.teacher), seed=5).abs()
    check_pairs(
        lambda: pairwise_kl(
            shaped.teacher, shaped.teacher_head, shaped.student, shaped.student_head, logits_bytes=logits_bytes
        ),
        shaped.every_pair(slow_kl),
        shaped.student,
        weights,
    )


def test_last_value_and_gradients(case, logits_bytes, check_last):
    pair = case(9, 11, (5, 4), (1, 1), bias=True)
    head = pair.student_head
    inputs = [*pair.student, head.weight.requires_grad_(), head.bias.requires_grad_()]
    check_last(
        lambda: last_kl(pair.teacher[0], pair.teacher_head, pair.student[0], head, logits_bytes=logits_bytes),
        pair.every_pair(slow_kl).squeeze() / 9,
        inputs,
    )


def test_a_match_of_one_teacher_target_each(case):
    pair = case(5, 7, (4, 4), (4, 2))
    pairs = pairwise_kl(pair.teacher, pair.teacher_head, pair.student, pair.student_head)
    weights = torch.zeros(2, 4)
    weights[0, 1] = weights[1, 3] = 1
    pairs.weighted(weights).backward()
    for student, drawn in ((0, 1), (1, 3)):
        alone = pair.student[student].detach().requires_grad_()
        last_kl(pair.teacher[drawn], pair.teacher_head, alone, pair.student_head).backward()
        torch.testing.assert_close(pair.student[student].grad, alone.grad * 5)


def test_targets_out_of_the_match_get_no_gradient(case):
    pair = case(5, 7, (4, 4), (3, 2))
    pairs = pairwise_kl(pair.teacher, pair.teacher_head, pair.student, pair.student_head)
    pairs.weighted(torch.tensor([[0.0, 0.5, 0.5], [0.0, 0.0, 0.0]])).backward()
    assert pair.student[0].grad is not None
    assert pair.student[1].grad is None
    assert not pairs.weighted(torch.zeros(2, 3)).requires_grad


def test_without_a_graph_there_are_sums_only(case):
    pair = case(5, 7, (4, 4), (3, 2))
    with torch.no_grad():
        pairs = pairwise_kl(pair.teacher, pair.teacher_head, pair.student, pair.student_head)
    assert not pairs.weighted(torch.ones(2, 3)).requires_grad
    torch.testing.assert_close(pairs.weighted(torch.ones(2, 3)), pairs.sums.sum())


def test_the_head_is_frozen_between_targets_and_trained_at_the_last_layer(case):
    pair = case(5, 7, (4, 4), (3, 2))
    pair.student_head.weight.requires_grad_()
    pairwise_kl(pair.teacher, pair.teacher_head, pair.student, pair.student_head).weighted(torch.ones(2, 3)).backward()
    assert pair.student_head.weight.grad is None
    last_kl(pair.teacher[0], pair.teacher_head, pair.student[0], pair.student_head).backward()
    assert pair.student_head.weight.grad is not None


def test_padded_vocabularies(case, check_pairs, drawn):
    padded = case(6, (19, 16), (4, 5), (3, 2), bias=True)
    cut = case(6, (19, 16), (4, 5), (3, 2), bias=True)
    cut.teacher_head, cut.student_head = padded.teacher_head.first(13), padded.student_head.first(13)
    check_pairs(
        lambda: pairwise_kl(
            cut.teacher, padded.teacher_head.first(13), cut.student, padded.student_head.first(13), logits_bytes=900
        ),
        cut.every_pair(slow_kl),
        cut.student,
        drawn(2, 3, seed=1),
    )


def test_equal_distributions(case):
    pair = case(6, 9, (4, 4), (1, 1), dtype=torch.float32)
    same = [part.detach().clone().requires_grad_() for part in pair.teacher]
    pairs = pairwise_kl(pair.teacher, pair.teacher_head, same, pair.teacher_head)
    loss = pairs.weighted(torch.ones(1, 1))
    loss.backward()
    assert float(pairs.sums) == pytest.approx(0, abs=1e-9)
    assert not same[0].grad.any()


def test_logits_far_apart():
    # exp(-d) of a word overflows in float32.
    head = Head(torch.eye(3))
    teacher, student = torch.tensor([[300.0, 0.0, 0.0]]), torch.tensor([[0.0, 300.0, -300.0]], requires_grad=True)
    for loss in (
        last_kl(teacher, head, student, head),
        pairwise_kl([teacher], head, [student], head).weighted(torch.ones(1, 1)),
    ):
        assert loss.item() == 300
        (gradient,) = torch.autograd.grad(loss, student)
        torch.testing.assert_close(gradient, torch.tensor([[-1.0, 1.0, 0.0]]))


def test_bad_input(case):
    pair = case(3, 5, (4, 4), (2, 1))
    with pytest.raises(VocabularyMismatchError, match="got 4 of the teacher and 5 of the student"):
        pairwise_kl(pair.teacher, pair.teacher_head.first(4), pair.student, pair.student_head)
    with pytest.raises(BatchError, match="2 teacher and 1 student targets of"):
        pairwise_kl([pair.teacher[0], pair.teacher[1][:2]], pair.teacher_head, pair.student, pair.student_head)
    with pytest.raises(BatchError, match="of \\[0\\] tokens"):
        last_kl(pair.teacher[0][:0], pair.teacher_head, pair.student[0][:0], pair.student_head)
