"""The same losses without fusing, and the calculation of last-layer distillation in TRL's GKD.

T tokens, h hidden size, V words, t_s and t_l targets.
"""

import math

import torch
from torch import Tensor
from torch.nn import functional as F


def naive(teacher: list[Tensor], teacher_weight: Tensor, student: list[Tensor], student_weight: Tensor) -> Tensor:
    """Terms of all pairs [t_s, t_l, T, V] with a graph, beside all log-probabilities -> mean KLs [t_s, t_l]."""
    with torch.no_grad():
        theirs = F.log_softmax(torch.stack(teacher) @ teacher_weight.T, dim=-1)
    ours = F.log_softmax(torch.stack(student) @ student_weight.T, dim=-1)
    terms = F.kl_div(ours[:, None], theirs[None], reduction="none", log_target=True)
    return terms.sum(-1).mean(-1)


def pair_by_pair(
    teacher: list[Tensor], teacher_weight: Tensor, student: list[Tensor], student_weight: Tensor
) -> list[list[Tensor]]:
    """All log-probabilities at once, one pair's terms at a time."""
    with torch.no_grad():
        theirs = [F.log_softmax(part @ teacher_weight.T, dim=-1) for part in teacher]
    ours = [F.log_softmax(part @ student_weight.T, dim=-1) for part in student]
    return [[F.kl_div(q, p, reduction="batchmean", log_target=True) for p in theirs] for q in ours]


def gkd(teacher_logits: Tensor, student_logits: Tensor, beta: float) -> Tensor:
    """Generalized Jensen-Shannon divergence of whole logits [T, V], mean over tokens (Agarwal et al., 2024, Eq. 1).

    Step by step what TRL's GKDTrainer calculates at temperature 1: unreduced terms of both divergences from the
    mixture beta p_t + (1 - beta) p_s, or of KL(p_t || p_s) alone where beta is 0.
    """
    ours, theirs = F.log_softmax(student_logits, dim=-1), F.log_softmax(teacher_logits, dim=-1)
    if beta == 0:
        terms = F.kl_div(ours, theirs, reduction="none", log_target=True)
    else:
        shares = torch.stack([theirs + math.log(beta), ours + math.log(1 - beta)])
        mixture = torch.logsumexp(shares, dim=0)
        from_teacher = F.kl_div(mixture, theirs, reduction="none", log_target=True)
        from_student = F.kl_div(mixture, ours, reduction="none", log_target=True)
        terms = beta * from_teacher + (1 - beta) * from_student
    return terms.sum() / len(terms)
