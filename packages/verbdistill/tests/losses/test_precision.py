"""Float32 against float64 on the same numbers: 1e-5 relative, as the losses are used in training."""

import pytest
import torch
from torch.nn import functional as F

from verbdistill.losses.cross_entropy import ar_loss
from verbdistill.losses.heads import Head
from verbdistill.losses.logit_l2 import pairwise_logit_l2
from verbdistill.losses.pairwise_kl import last_kl, pairwise_kl


def reference(theirs, ours):
    """KL sums [t_s, t_l] of float64 logits, autograd's."""
    log_q = [F.log_softmax(part, dim=-1) for part in ours]
    log_p = [F.log_softmax(part, dim=-1) for part in theirs]
    return torch.stack([torch.stack([F.kl_div(q, p, reduction="sum", log_target=True) for p in log_p]) for q in log_q])


def near(pair, distance):
    """Moves the student's features to a mix of the teacher's and a little of their own."""
    pair.student = [
        (theirs + distance * ours.detach()).requires_grad_()
        for theirs, ours in zip(pair.teacher, pair.student, strict=False)
    ]
    pair.student_head = pair.teacher_head
    return pair


def relative(got, wanted):
    return ((got.detach().double() - wanted).norm() / wanted.norm()).item()


@pytest.mark.parametrize("head_dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("distance", [None, 1.0, 0.1, 0.05])
def test_pairs(case, distance, head_dtype):
    pair = case(37, 1003, (24, 24), (3, 2), dtype=torch.float32, head_dtype=head_dtype)
    if distance:
        pair = near(pair, distance)
    expected = reference(*pair.logits())
    pairs = pairwise_kl(pair.teacher, pair.teacher_head, pair.student, pair.student_head, logits_bytes=2**17)
    worst = ((pairs.sums - expected) / expected).abs().max()
    assert worst < 1e-5
    # The matched pairs are the near ones.
    weights = torch.tensor([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]])
    wanted = torch.autograd.grad((weights * expected).sum(), pair.student)
    for got, want in zip(torch.autograd.grad(pairs.weighted(weights), pair.student), wanted, strict=True):
        assert relative(got, want) < 1e-5


@pytest.mark.parametrize("distance", [None, 1.0, 0.1, 0.05])
def test_last(case, distance):
    pair = case(37, 1003, (24, 24), (1, 1), dtype=torch.float32)
    if distance:
        pair = near(pair, distance)
    (student,) = pair.student
    expected = reference(*pair.logits()).squeeze() / 37
    got = last_kl(pair.teacher[0], pair.teacher_head, student, pair.student_head, logits_bytes=2**17)
    assert relative(got, expected) < 1e-5
    wanted = torch.autograd.grad(expected, student)
    assert relative(torch.autograd.grad(got, student)[0], wanted[0]) < 1e-5


def test_l2_of_near_logits(case):
    pair = near(case(37, 1003, (24, 24), (3, 2), dtype=torch.float32), 0.1)
    theirs, ours = pair.logits()
    expected = torch.stack([torch.stack([(s - t).square().mean(-1).sum() for t in theirs]) for s in ours])
    pairs = pairwise_logit_l2(pair.teacher, pair.teacher_head, pair.student, pair.student_head)
    assert ((pairs.sums - expected) / expected).abs().max() < 1e-5


def test_labels_that_are_nearly_certain():
    labels = torch.arange(5)
    features = (16 * torch.eye(5)).requires_grad_()
    weight = torch.eye(5) + 0.01
    expected = F.cross_entropy(features.double() @ weight.double().T, labels)
    got = ar_loss(features, Head(weight), labels)
    assert relative(got, expected) < 0.2  # 4e-7 nats: float32's softmax ends here
    wanted = torch.autograd.grad(expected, features)[0]
    assert relative(torch.autograd.grad(got, features)[0], wanted) < 0.2


def test_under_autocast_and_of_half_precision_features(case):
    def run(pair):
        pairs = pairwise_kl(pair.teacher, pair.teacher_head, pair.student, pair.student_head)
        loss = pairs.weighted(torch.ones(2, 3))
        return loss, torch.autograd.grad(loss, pair.student)

    pair = case(5, 103, (24, 24), (3, 2), dtype=torch.bfloat16)
    widened = case(5, 103, (24, 24), (3, 2), dtype=torch.bfloat16)
    widened.teacher = [part.float() for part in pair.teacher]
    widened.student = [part.detach().float().requires_grad_() for part in pair.student]
    expected, wanted = run(widened)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss, gradients = run(pair)
        assert torch.equal(run(widened)[0], expected)
    assert torch.equal(loss, expected)
    for got, want in zip(gradients, wanted, strict=True):
        assert torch.equal(got, want.bfloat16())


def test_nan_is_not_hidden(case):
    pair = case(5, 13, (4, 4), (2, 1), dtype=torch.float32)
    with torch.no_grad():
        pair.student[0][2, 1] = torch.nan
    arguments = (pair.teacher, pair.teacher_head, pair.student, pair.student_head)
    assert pairwise_kl(*arguments).sums.isnan().all()
    assert pairwise_logit_l2(*arguments).sums.isnan().all()
    assert last_kl(pair.teacher[0], pair.teacher_head, pair.student[0], pair.student_head).isnan()
