import pytest
import torch

from verbdistill.errors import BatchError, VocabularyMismatchError
from verbdistill.losses.heads import Head, shared_heads
from verbdistill.losses.pairwise_kl import last_kl, pairwise_kl


def drawn(*shape, seed=0, scale=1.0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    return (torch.randn(*shape, generator=generator, dtype=torch.float64) * scale).to(dtype)


def slow_kl(theirs, ours):
    """Of two rows of logits, word by word in float64."""
    p = theirs.double().exp() / theirs.double().exp().sum()
    q = ours.double().exp() / ours.double().exp().sum()
    return sum(p[word] * (p[word] / q[word]).log() for word in range(len(p)))


def case(num_tokens, words, widths, num_targets, *, seed=0, dtype=torch.float64, bias=False):
    heads = [
        Head(
            drawn(words, width, seed=seed + k, scale=width**-0.5, dtype=dtype),
            drawn(words, seed=9, dtype=dtype) if bias else None,
        )
        for k, width in enumerate(widths)
    ]
    sides = [
        [drawn(num_tokens, width, seed=seed + 10 * k + number + 3, scale=2, dtype=dtype) for number in range(count)]
        for k, (width, count) in enumerate(zip(widths, num_targets, strict=True))
    ]
    return heads[0], heads[1], sides[0], [part.requires_grad_() for part in sides[1]]


def naive_sums(teacher_head, student_head, teacher, student):
    rows = [
        torch.stack(
            [
                sum(
                    slow_kl(*pair)
                    for pair in zip(teacher_head.logits(t.double()), student_head.logits(s.double()), strict=True)
                )
                for t in teacher
            ]
        )
        for s in student
    ]
    return torch.stack(rows)


@pytest.mark.parametrize("logits_bytes", [1, 1500, 2**20])
@pytest.mark.parametrize(
    ("num_tokens", "words", "widths", "targets", "bias"),
    [(7, 11, (5, 4), (3, 2), False), (1, 13, (3, 6), (4, 3), True), (10, 2, (4, 4), (1, 1), False)],
)
def test_sums_and_gradients(num_tokens, words, widths, targets, bias, logits_bytes):
    teacher_head, student_head, teacher, student = case(num_tokens, words, widths, targets, bias=bias)
    expected = naive_sums(teacher_head, student_head, teacher, student)
    weights = drawn(*reversed(targets), seed=5).abs()
    wanted = torch.autograd.grad((weights * expected).sum(), student)
    pairs = pairwise_kl(teacher, teacher_head, student, student_head, logits_bytes=logits_bytes)
    assert pairs.num_tokens == num_tokens
    assert pairs.sums.dtype == torch.float64
    torch.testing.assert_close(pairs.sums, expected.detach(), rtol=1e-9, atol=1e-12)
    loss = pairs.weighted(weights)
    torch.testing.assert_close(loss, (weights * expected).sum().detach(), rtol=1e-9, atol=1e-12)
    for got, want in zip(torch.autograd.grad(loss * 3, student), wanted, strict=True):
        torch.testing.assert_close(got, want * 3, rtol=1e-8, atol=1e-12)


@pytest.mark.parametrize("logits_bytes", [1, 1500, 2**20])
def test_last_value_and_gradients(logits_bytes):
    teacher_head, student_head, (teacher,), (student,) = case(9, 11, (5, 4), (1, 1), bias=True)
    for part in (student_head.weight, student_head.bias):
        part.requires_grad_()
    inputs = (student, student_head.weight, student_head.bias)
    expected = naive_sums(teacher_head, student_head, [teacher], [student]).squeeze() / 9
    wanted = torch.autograd.grad(expected, inputs)
    got = last_kl(teacher, teacher_head, student, student_head, logits_bytes=logits_bytes)
    torch.testing.assert_close(got, expected, rtol=1e-9, atol=1e-12)
    for one, other in zip(torch.autograd.grad(got, inputs), wanted, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-8, atol=1e-12)


def test_bad_input():
    teacher_head, student_head, teacher, student = case(3, 5, (4, 4), (2, 1))
    with pytest.raises(VocabularyMismatchError, match="got 4 of the teacher and 5 of the student"):
        pairwise_kl(teacher, teacher_head.first(4), student, student_head)
    with pytest.raises(BatchError, match="2 teacher and 1 student targets of"):
        pairwise_kl([teacher[0], teacher[1][:2]], teacher_head, student, student_head)
    with pytest.raises(BatchError, match="of \\[0\\] tokens"):
        last_kl(teacher[0][:0], teacher_head, student[0][:0], student_head)


def test_shared_heads():
    big, small = Head(torch.zeros(8, 3), torch.zeros(8)), Head(torch.zeros(6, 2))
    teacher, student = shared_heads(big, small, torch.tensor([5, 0]))
    assert (teacher.num_words, len(teacher.bias), student.num_words) == (6, 6, 6)
    with pytest.raises(VocabularyMismatchError, match="below the shared vocabulary of 6"):
        shared_heads(big, small, torch.tensor([6]))
    with pytest.raises(BatchError, match="at least one"):
        shared_heads(big, small, torch.tensor([], dtype=torch.int64))
