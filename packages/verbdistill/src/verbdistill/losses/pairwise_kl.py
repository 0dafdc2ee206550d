"""KL divergences of a teacher's words from a student's: of every pair of targets, and of the last layers.

t_s, t_l targets, N response tokens, n of a chunk, h hidden size, V words.
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from verbdistill.losses.chunks import DEFAULT_LOGITS_BYTES
from verbdistill.losses.fused import summed_loss
from verbdistill.losses.heads import Head
from verbdistill.losses.linear_pairs import LinearPairs, check_tokens, check_words, pairs_of_logits, products, totals

_ARRAYS = 8  # of both sides log-probabilities and probabilities; near and far terms of the sum, what is chosen of them


def pairwise_kl(
    teacher: Sequence[Tensor],
    teacher_head: Head,
    student: Sequence[Tensor],
    student_head: Head,
    *,
    logits_bytes: int = DEFAULT_LOGITS_BYTES,
) -> LinearPairs:
    """KL(teacher target || student target) of every pair, nats (VLsI, Section 3.2).

    For logits z_i of a student target, d KL[i, j] / d z_i = p_i - p_j. One pass therefore gives the sums and, for any
    match drawn from them, the gradient; memory grows with a target by its features, not by V.

    Args:
        teacher: What its head reads of every target, [N, h_t] each.
        teacher_head: Cut to the shared words; frozen.
        student: The same of the student, [N, h]; these get gradients.
        student_head: Cut to the same words; frozen here, also if it requires gradients.
        logits_bytes: Room for everything with a vocabulary axis.

    Raises:
        BatchError: The features are not of the same tokens, or of none.
        VocabularyMismatchError: The heads have not as many words each.
    """
    pairs = pairs_of_logits(teacher, teacher_head, student, student_head, _kl_rule, logits_bytes=logits_bytes)
    # Rounding can leave a pair that agrees a hair below zero.
    pairs.sums.clamp_min_(0)
    return pairs


def last_kl(
    teacher: Tensor,
    teacher_head: Head,
    student: Tensor,
    student_head: Head,
    *,
    logits_bytes: int = DEFAULT_LOGITS_BYTES,
) -> Tensor:
    """Mean KL(teacher || student) over tokens, nats, scalar.

    Args:
        teacher: What its head reads, [N, h_t].
        teacher_head: Cut to the shared words; frozen.
        student: The same of the student, [N, h].
        student_head: Cut to the same words; weight and bias get gradients if they require them.
        logits_bytes: Room for everything with a vocabulary axis.

    Raises:
        BatchError: The features are not of the same tokens, or of none.
        VocabularyMismatchError: The heads have not as many words each.
    """
    check_tokens([teacher], [student])
    check_words(teacher_head, student_head)
    teacher = teacher.detach()

    def rule(chunk: slice, logits: Tensor) -> tuple[Tensor, Tensor]:
        ours = F.log_softmax(logits, dim=-1)
        theirs = F.log_softmax(teacher_head.logits(teacher[chunk].to(logits.dtype)), dim=-1)
        gradient = torch.exp(ours, out=logits)
        losses = _divergence(theirs, ours, gradient)
        return losses, gradient.sub_(theirs.exp_())

    return summed_loss(student, student_head, rule, num_arrays=_ARRAYS, logits_bytes=logits_bytes) / len(student)


def _divergence(theirs: Tensor, ours: Tensor, our_p: Tensor) -> Tensor:
    """KL of rows; overwrites `ours`; log-probabilities [n, V] -> [n].

    As p and q sum to one each, KL = sum of p (log p/q - 1) + q. Every term is at least 0, and near agreement, where
    p and q cancel, it is p (d + exp(-d) - 1) with d = log p/q.
    """
    difference = torch.sub(theirs, ours, out=ours)
    their_p = theirs.exp()
    near = difference.clamp(-1, 1).neg_().expm1_().add_(difference).mul_(their_p)
    far = torch.addcmul(our_p - their_p, their_p, difference)
    return torch.where(difference.abs() < 1, near, far).sum(-1)


def _kl_rule(theirs: Tensor, ours: Tensor) -> Tensor:
    """Turns logits into probabilities in place; see `PairRule`."""
    for target in (*theirs, *ours):
        target.copy_(F.log_softmax(target, dim=-1))
    negentropies = torch.empty(len(theirs), dtype=torch.float64, device=theirs.device)
    for number, target in enumerate(theirs):
        log_p = target.clone()
        target.exp_()
        negentropies[number] = products(target[None], log_p[None]).squeeze()
    cross = products(ours, theirs)
    ours.exp_()
    # Probabilities in float32 do not sum to one: with their own sums the error is of second order.
    return negentropies - totals(theirs) + totals(ours)[:, None] - cross
