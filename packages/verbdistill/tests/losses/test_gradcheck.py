"""Closed-form gradients against finite differences, in float64."""

import pytest
import torch

from verbdistill.losses.cross_entropy import ar_loss
from verbdistill.losses.feature_l2 import pairwise_feature_l2
from verbdistill.losses.heads import Head
from verbdistill.losses.logit_l2 import last_logit_l2, pairwise_logit_l2
from verbdistill.losses.pairwise_kl import last_kl, pairwise_kl
from verbdistill.losses.sorted_distance import last_sorted_distance, pairwise_sorted_distance
from verbdistill.losses.truncated import truncated_last_kl, truncated_pairwise_kl

WEIGHTS = torch.tensor([[0.5, 0.5, 0.0], [0.0, 0.25, 2.0]])


@pytest.mark.parametrize("loss", [pairwise_kl, pairwise_logit_l2, pairwise_sorted_distance])
def test_pairs(case, loss):
    pair = case(4, 7, (3, 5), (3, 2))

    def of_features(*student):
        return loss(pair.teacher, pair.teacher_head, student, pair.student_head, logits_bytes=500).weighted(WEIGHTS)

    torch.autograd.gradcheck(of_features, pair.student)


def test_features(case):
    pair = case(4, 7, (5, 5), (3, 2))
    torch.autograd.gradcheck(
        lambda *student: pairwise_feature_l2(pair.teacher, student).weighted(WEIGHTS), pair.student
    )


def kept(pair):
    return zip(
        *((part.indices, part.values) for part in (x.log_softmax(-1).topk(3) for x in pair.logits()[0])), strict=True
    )


def test_truncated_pairs(case):
    pair = case(4, 7, (3, 5), (3, 2))
    words, log_p = kept(pair)
    torch.autograd.gradcheck(
        lambda *student: truncated_pairwise_kl(words, log_p, student, pair.student_head).weighted(WEIGHTS), pair.student
    )


@pytest.mark.parametrize("loss", [last_kl, last_logit_l2, last_sorted_distance, truncated_last_kl, ar_loss])
def test_last_with_head(case, loss):
    pair = case(4, 7, (3, 5), (1, 1), bias=True)
    (words,), (log_p,) = kept(pair)

    def of_all(features, weight, bias):
        head = Head(weight, bias)
        if loss is ar_loss:
            return ar_loss(features, head, torch.tensor([6, 0, 2, 2]), logits_bytes=500)
        if loss is truncated_last_kl:
            return truncated_last_kl(words, log_p, features, head, logits_bytes=500)
        return loss(pair.teacher[0], pair.teacher_head, features, head, logits_bytes=500)

    head = pair.student_head
    torch.autograd.gradcheck(of_all, (*pair.student, head.weight.requires_grad_(), head.bias.requires_grad_()))


def test_a_second_derivative_is_refused(case):
    pair = case(4, 7, (3, 5), (1, 1))
    loss = last_kl(pair.teacher[0], pair.teacher_head, pair.student[0], pair.student_head)
    outer = torch.ones((), dtype=torch.float64, requires_grad=True)
    (gradient,) = torch.autograd.grad(loss, pair.student, outer, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        gradient.sum().backward()
