"""Squared distances of logits, the L2 of the paper's Table 4d: of every pair of targets, and of the last layers.

t_s, t_l targets, N response tokens, n of a chunk, h hidden size, V words.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from verbdistill.losses.chunks import DEFAULT_LOGITS_BYTES
from verbdistill.losses.fused import summed_loss
from verbdistill.losses.heads import Head
from verbdistill.losses.linear_pairs import LinearPairs, check_tokens, check_words, pairs_of_logits, products

_ARRAYS = 3  # both sides' logits, squares of their difference


def pairwise_logit_l2(
    teacher: Sequence[Tensor],
    teacher_head: Head,
    student: Sequence[Tensor],
    student_head: Head,
    *,
    logits_bytes: int = DEFAULT_LOGITS_BYTES,
) -> LinearPairs:
    """Squared distance of a student target's logits from a teacher target's, mean over words, of every pair.

    Arguments and errors as of `pairwise_kl`.
    """
    pairs = pairs_of_logits(teacher, teacher_head, student, student_head, _l2_rule, logits_bytes=logits_bytes)
    # Rounding can leave a pair that agrees a hair below zero.
    pairs.sums.clamp_min_(0)
    return pairs


def last_logit_l2(
    teacher: Tensor,
    teacher_head: Head,
    student: Tensor,
    student_head: Head,
    *,
    logits_bytes: int = DEFAULT_LOGITS_BYTES,
) -> Tensor:
    """Squared distance of the last layers' logits, mean over words and tokens, scalar.

    Arguments and errors as of `last_kl`.
    """
    check_tokens([teacher], [student])
    check_words(teacher_head, student_head)
    teacher = teacher.detach()

    def rule(chunk: slice, logits: Tensor) -> tuple[Tensor, Tensor]:
        difference = logits.sub_(teacher_head.logits(teacher[chunk].to(logits.dtype)))
        losses = difference.square().mean(-1)
        return losses, difference.mul_(2 / student_head.num_words)

    return summed_loss(student, student_head, rule, num_arrays=_ARRAYS, logits_bytes=logits_bytes) / len(student)


def _l2_rule(theirs: Tensor, ours: Tensor) -> Tensor:
    """Scales logits so that their difference is the gradient; see `PairRule`."""
    num_words = ours.shape[-1]
    our_squares, their_squares = (
        torch.cat([products(target[None], target[None]).flatten() for target in side]) for side in (ours, theirs)
    )
    sums = (our_squares[:, None] + their_squares - 2 * products(ours, theirs)) / num_words
    for side in (ours, theirs):
        side.mul_(2 / num_words)
    return sums
