import pytest
import torch

from verbdistill.errors import BatchError, VocabularyMismatchError
from verbdistill.losses.heads import Head
from verbdistill.losses.pairwise_kl import pairwise_kl
from verbdistill.losses.truncated import likeliest_words, truncated_last_kl, truncated_pairwise_kl, truncation_bias


def kept_by(pair, num_kept):
    """Words and log-probabilities in float64, by sorting."""
    words, log_p = [], []
    for logits in pair.logits()[0]:
        descending = logits.log_softmax(-1).sort(-1, descending=True)
        words.append(descending.indices[:, :num_kept])
        log_p.append(descending.values[:, :num_kept])
    return words, log_p


def slow_truncated_kl(num_kept):
    def of_rows(theirs, ours):
        p, q = theirs.exp() / theirs.exp().sum(), ours.exp() / ours.exp().sum()
        order = p.argsort(descending=True)
        kept, others = order[:num_kept], order[num_kept:]
        total = sum(p[word] * (p[word] / q[word]).log() for word in kept)
        if len(others):
            total = total + p[others].sum() * (p[others].sum() / q[others].sum()).log()
        return total

    return of_rows


@pytest.mark.parametrize("num_kept", [1, 2, 10])
def test_sums_and_gradients(shaped, logits_bytes, num_kept, check_pairs, drawn):
    num_kept = min(num_kept, shaped.teacher_head.num_words)
    words, log_p = kept_by(shaped, num_kept)
    check_pairs(
        lambda: truncated_pairwise_kl(words, log_p, shaped.student, shaped.student_head, logits_bytes=logits_bytes),
        shaped.every_pair(slow_truncated_kl(num_kept)),
        shaped.student,
        drawn(len(shaped.student), len(shaped.teacher), seed=5).abs(),
    )


def test_last_value_and_gradients(case, logits_bytes, check_last):
    pair = case(9, 11, (5, 4), (1, 1), bias=True)
    head = pair.student_head
    inputs = [*pair.student, head.weight.requires_grad_(), head.bias.requires_grad_()]
    (words,), (log_p,) = kept_by(pair, 4)
    check_last(
        lambda: truncated_last_kl(words, log_p, pair.student[0], head, logits_bytes=logits_bytes),
        pair.every_pair(slow_truncated_kl(4)).squeeze() / 9,
        inputs,
    )


def test_likeliest_words(case, logits_bytes):
    pair = case(9, 11, (5, 4), (1, 1))
    words, log_p = likeliest_words(pair.teacher[0], pair.teacher_head, 4, logits_bytes=logits_bytes)
    (expected_words,), (expected_log_p,) = kept_by(pair, 4)
    assert (words.dtype, log_p.dtype) == (torch.int64, torch.float32)
    assert torch.equal(words, expected_words)
    torch.testing.assert_close(log_p, expected_log_p.float())
    assert likeliest_words(pair.teacher[0], pair.teacher_head, 99)[0].shape == (9, 11)


def test_more_words_come_nearer_from_below(case):
    pair = case(9, 40, (5, 4), (3, 2), seed=3, dtype=torch.float32)
    full = pairwise_kl(pair.teacher, pair.teacher_head, pair.student, pair.student_head).sums / 9
    biases = []
    for num_kept in (1, 4, 16, 39, 40):
        arguments = (pair.teacher, pair.teacher_head, pair.student, pair.student_head)
        reported, bias = truncation_bias(*arguments, num_kept=num_kept)
        torch.testing.assert_close(reported, full)
        biases.append(bias)
    for more, less in zip(biases[1:], biases, strict=False):
        assert (more <= less + 1e-6).all()
    assert (biases[0] > 1e-2).all()
    # Of V words V - 1 tell the last.
    assert biases[-2].abs().max() < 1e-6
    assert biases[-1].abs().max() < 1e-6


@pytest.mark.parametrize("num_kept", [2, 3])
def test_a_teacher_that_is_sure(num_kept):
    """What it leaves for other words is below rounding, and the student gives them nothing either."""
    head = Head(torch.eye(4))
    teacher, student = (
        torch.tensor([[40.0, 39.0, 0.0, 0.0]]),
        torch.tensor([[60.0, 58.0, 0.0, 0.0]], requires_grad=True),
    )
    words, log_p = likeliest_words(teacher, head, num_kept)
    loss = truncated_last_kl(words, log_p, student, head)
    full = pairwise_kl([teacher], head, [student], head).weighted(torch.ones(1, 1))
    torch.testing.assert_close(loss, full, rtol=1e-4, atol=1e-6)
    gradients = [torch.autograd.grad(value, student)[0] for value in (loss, full)]
    torch.testing.assert_close(*gradients, rtol=1e-4, atol=1e-6)


def test_bad_input(case):
    pair = case(3, 5, (4, 4), (2, 1))
    words, log_p = kept_by(pair, 5)
    with pytest.raises(VocabularyMismatchError, match="kept words below 4, those the student has, got 4"):
        truncated_pairwise_kl(words, log_p, pair.student, pair.student_head.first(4))
    with pytest.raises(BatchError, match="of one shape"):
        truncated_last_kl(words[0], log_p[0][:, :2], pair.student[0], pair.student_head)
    with pytest.raises(BatchError, match="the same response tokens"):
        truncated_last_kl(words[0][:2], log_p[0][:2], pair.student[0], pair.student_head)
