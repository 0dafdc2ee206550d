"""Losses of pairs whose gradient is computed for a match alone, in a second pass over its targets.

t_s, t_l targets, N response tokens, n of a chunk, h hidden size, V words.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from verbdistill.losses.fused import Rule, summed_loss
from verbdistill.losses.heads import Head, working_dtype
from verbdistill.losses.pairs import PairLosses

Partners = Sequence[tuple[int, float]]
"""Teacher targets that a student target is compared with, 0-based, and the weight of each."""


class RecomputedPairs(PairLosses):
    """Keeps sums only: the gradient is no difference of a part of the student and one of the teacher."""

    def __init__(
        self,
        sums: Tensor,
        student: Sequence[Tensor],
        head: Head,
        rule_of: Callable[[Partners], Rule],
        *,
        num_arrays: int,
        logits_bytes: int,
    ) -> None:
        """Takes sums [t_s, t_l], the student's features [N, h] each and its head, and the loss of some partners."""
        self.sums = sums.double().cpu()
        self.num_tokens = len(student[0])
        self._student = tuple(student)
        self._head = Head(head.weight.detach(), None if head.bias is None else head.bias.detach())
        self._rule_of = rule_of
        self._num_arrays = num_arrays
        self._logits_bytes = logits_bytes

    def weighted(self, weights: Tensor) -> Tensor:
        """Sum over tokens and pairs of weight times loss; weights [t_s, t_l]."""
        first = self._student[0]
        total = torch.zeros((), dtype=working_dtype(first), device=first.device)
        rows: list[list[float]] = weights.tolist()
        for features, row in zip(self._student, rows, strict=True):
            partners = [(number, weight) for number, weight in enumerate(row) if weight]
            if partners:
                total = total + summed_loss(
                    features,
                    self._head,
                    self._rule_of(partners),
                    num_arrays=self._num_arrays,
                    logits_bytes=self._logits_bytes,
                )
        return total
