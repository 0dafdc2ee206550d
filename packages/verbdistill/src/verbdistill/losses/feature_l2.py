"""Squared distances of features: what is compared where there is no language head to read them.

t_s, t_l targets, N response tokens, h hidden size of both sides.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from verbdistill.errors import BatchError
from verbdistill.losses.heads import working_dtype
from verbdistill.losses.linear_pairs import LinearPairs, check_tokens, totals


def pairwise_feature_l2(teacher: Sequence[Tensor], student: Sequence[Tensor]) -> LinearPairs:
    """Squared distance of a student target's features from a teacher target's, mean over h, of every pair.

    Args:
        teacher: Of every target, [N, h] each.
        student: The same of the student, [N, h]; these get gradients.

    Raises:
        BatchError: The features are not of the same tokens, of none, or not of the same width.
    """
    check_tokens(teacher, student)
    widths = sorted({part.shape[1] for part in (*teacher, *student)})
    if len(widths) != 1:
        raise BatchError(f"features: expected one width of teacher and student, got {widths}")
    with torch.no_grad():
        dtype = working_dtype(*teacher, *student)
        ours, theirs = (torch.stack([part.to(dtype) for part in side]) for side in (student, teacher))
        sums = torch.stack([totals((own - theirs).square_()) for own in ours]) / widths[0]
        scale = 2 / widths[0]
    return LinearPairs(sums, student, ours.mul_(scale), theirs.mul_(scale))
