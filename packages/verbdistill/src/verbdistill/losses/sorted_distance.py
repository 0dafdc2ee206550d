"""Distances of sorted probabilities, for models whose words are not the same ones.

The L1 distance of both sides' probabilities in descending order, the shorter padded with zeros: it compares how sure
they are, not of what (the universal logit distillation loss of Boizard et al., 2024, without its cross-entropy term).

t_s, t_l targets, N response tokens, n of a chunk, h hidden size, V words, of either side.
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from verbdistill.losses.chunks import DEFAULT_LOGITS_BYTES, token_chunks
from verbdistill.losses.fused import Rule, summed_loss
from verbdistill.losses.heads import Head, working_dtype
from verbdistill.losses.linear_pairs import check_tokens
from verbdistill.losses.recomputed_pairs import Partners, RecomputedPairs

_ARRAYS = 12  # of both sides: logits, probabilities, sorted ones; ranks and order (int64); differences and signs


def pairwise_sorted_distance(
    teacher: Sequence[Tensor],
    teacher_head: Head,
    student: Sequence[Tensor],
    student_head: Head,
    *,
    logits_bytes: int = DEFAULT_LOGITS_BYTES,
) -> RecomputedPairs:
    """Distance of sorted probabilities of every pair, 0 to 2; the heads may have any words.

    Args:
        teacher: What its head reads of every target, [N, h_t] each.
        teacher_head: Frozen.
        student: The same of the student, [N, h]; these get gradients.
        student_head: Frozen here.
        logits_bytes: Room for everything with a vocabulary axis.

    Raises:
        BatchError: The features are not of the same tokens, or of none.
    """
    num_tokens = check_tokens(teacher, student)
    sums = torch.zeros(len(student), len(teacher), dtype=torch.float64, device=student[0].device)
    with torch.no_grad():
        for chunk in token_chunks(
            num_tokens,
            num_words=max(teacher_head.num_words, student_head.num_words),
            num_arrays=len(teacher) + _ARRAYS,
            itemsize=working_dtype(*teacher, *student).itemsize,
            logits_bytes=logits_bytes,
        ):
            theirs = [_descending(teacher_head, part[chunk]) for part in teacher]
            for row, features in zip(sums, student, strict=True):
                ours = _descending(student_head, features[chunk])
                row += torch.stack([_distance(ours, part).sum(dtype=torch.float64) for part in theirs])

    def rule_of(partners: Partners) -> Rule:
        return _rule([(teacher[number].detach(), weight) for number, weight in partners], teacher_head)

    return RecomputedPairs(
        sums, student, student_head, rule_of, num_arrays=_arrays(teacher_head, student_head), logits_bytes=logits_bytes
    )


def last_sorted_distance(
    teacher: Tensor,
    teacher_head: Head,
    student: Tensor,
    student_head: Head,
    *,
    logits_bytes: int = DEFAULT_LOGITS_BYTES,
) -> Tensor:
    """Mean over tokens of the last layers' distance of sorted probabilities, scalar.

    As `pairwise_sorted_distance` of one pair; the student's head gets gradients if it requires them.
    """
    check_tokens([teacher], [student])
    arrays = _arrays(teacher_head, student_head)
    rule = _rule([(teacher.detach(), 1.0)], teacher_head)
    return summed_loss(student, student_head, rule, num_arrays=arrays, logits_bytes=logits_bytes) / len(student)


def _arrays(teacher_head: Head, student_head: Head) -> int:
    """`_ARRAYS` of the wider side, counted in the student's words."""
    return -(-_ARRAYS * max(teacher_head.num_words, student_head.num_words) // student_head.num_words)


def _descending(head: Head, features: Tensor) -> Tensor:
    return F.softmax(head.logits(features), dim=-1).sort(dim=-1, descending=True).values


def _distance(ours: Tensor, theirs: Tensor) -> Tensor:
    """Of rows in descending order, [n, V] and [n, V_t] -> [n]."""
    size = min(ours.shape[1], theirs.shape[1])
    shared = (ours[:, :size] - theirs[:, :size]).abs_().sum(-1)
    return shared + ours[:, size:].sum(-1) + theirs[:, size:].sum(-1)


def _rule(partners: Sequence[tuple[Tensor, float]], teacher_head: Head) -> Rule:
    def rule(chunk: slice, logits: Tensor) -> tuple[Tensor, Tensor]:
        p = F.softmax(logits, dim=-1)
        ours, order = p.sort(dim=-1, descending=True)
        losses = torch.zeros_like(ours[:, 0])
        signs = torch.zeros_like(ours)
        for features, weight in partners:
            theirs = _descending(teacher_head, features[chunk].to(logits.dtype))
            losses += weight * _distance(ours, theirs)
            theirs = F.pad(theirs, (0, max(0, ours.shape[1] - theirs.shape[1])))[:, : ours.shape[1]]
            signs.add_(torch.sign(theirs.neg_().add_(ours), out=theirs), alpha=weight)
        by_word = torch.empty_like(signs).scatter_(1, order, signs)
        return losses, p * (by_word - (p * by_word).sum(-1, keepdim=True))

    return rule
