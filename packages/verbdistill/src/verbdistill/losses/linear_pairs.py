"""Losses of pairs whose gradient is what the student's side gives less what the teacher's side gives.

t_s, t_l targets, N response tokens, n of a chunk, h hidden size (of the student), V words.
"""

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from verbdistill.errors import BatchError, VocabularyMismatchError
from verbdistill.losses.chunks import token_chunks
from verbdistill.losses.heads import Head, working_dtype
from verbdistill.losses.known_gradient import with_gradients
from verbdistill.losses.pairs import PairLosses

PairRule = Callable[[Tensor, Tensor], Tensor]
"""Of a chunk's logits of the teacher [t_l, n, V] and the student [t_s, n, V]: sums over the tokens, float64 [t_s, t_l].

It overwrites both with that whose difference, student's less teacher's, is the gradient of a pair for the logits.
"""

_LEAST_BLOCK = 2**12
"""Columns that are in float64 at once, at least."""


class LinearPairs(PairLosses):
    """d loss[i, j] / d features_i = own_i - other_j, so that any match needs no vocabulary axis again."""

    def __init__(self, sums: Tensor, student: Sequence[Tensor], own: Tensor | None, other: Tensor | None) -> None:
        """Takes sums [t_s, t_l], the student's features [N, h] each, own [t_s, N, h] and other [t_l, N, h].

        `own` and `other` may be None where the student needs no gradient.
        """
        self.sums = sums.double().cpu()
        self.num_tokens = len(student[0])
        self._student = tuple(student)
        self._own = own
        self._other = other

    def weighted(self, weights: Tensor) -> Tensor:
        """Sum over tokens and pairs of weight times loss; weights [t_s, t_l]."""
        student = self._student[0]
        value = (weights.detach().double().cpu() * self.sums).sum().to(student.device, working_dtype(student))
        if self._own is None or self._other is None:
            return value
        inputs, gradients = [], []
        rows: list[list[float]] = weights.tolist()
        for features, row, own in zip(self._student, rows, self._own, strict=True):
            if features.requires_grad and any(row):
                inputs.append(features)
                gradients.append(own * sum(row))
                for other, weight in zip(self._other, row, strict=True):
                    if weight:
                        gradients[-1].sub_(other, alpha=weight)
        return with_gradients(value, inputs, gradients) if inputs else value


def pairs_of_logits(
    teacher: Sequence[Tensor],
    teacher_head: Head,
    student: Sequence[Tensor],
    student_head: Head,
    rule: PairRule,
    *,
    logits_bytes: int,
) -> LinearPairs:
    """Logits of every target once, chunk by chunk, and all pairs of them.

    Targets of a side share a head, so a chunk of all of them is one matrix product.

    Raises:
        BatchError: The features are not of the same tokens, or of none.
        VocabularyMismatchError: The heads have not as many words each.
    """
    num_tokens = check_tokens(teacher, student)
    check_words(teacher_head, student_head)
    with_gradient = torch.is_grad_enabled() and any(part.requires_grad for part in student)
    with torch.no_grad():
        dtype = working_dtype(*teacher, *student)
        device = student[0].device
        sums = torch.zeros(len(student), len(teacher), dtype=torch.float64, device=device)
        shape = (num_tokens, student[0].shape[1])
        own, other = (
            torch.empty(len(side), *shape, dtype=dtype, device=device) if with_gradient else None
            for side in (student, teacher)
        )
        chunks = token_chunks(
            num_tokens,
            num_words=student_head.num_words,
            # One more for a target's temporary, one for products in float64.
            num_arrays=len(teacher) + len(student) + 2,
            itemsize=dtype.itemsize,
            logits_bytes=logits_bytes,
        )
        for chunk in chunks:
            theirs = teacher_head.logits(torch.stack([part[chunk].to(dtype) for part in teacher]))
            ours = student_head.logits(torch.stack([part[chunk].to(dtype) for part in student]))
            sums += rule(theirs, ours)
            if own is not None and other is not None:
                own[:, chunk] = student_head.pull_back(ours)
                other[:, chunk] = student_head.pull_back(theirs)
            # Freed before the next chunk's are made.
            del theirs, ours
    return LinearPairs(sums, student, own, other)


def products(ours: Tensor, theirs: Tensor) -> Tensor:
    """Inner products of every pair in float64; [t_s, ...], [t_l, ...] -> [t_s, t_l].

    What is subtracted from them later is nearly as large: float32 would leave few digits of a small loss.
    """
    ours, theirs = ours.flatten(1), theirs.flatten(1)
    found = torch.zeros(len(ours), len(theirs), dtype=torch.float64, device=ours.device)
    for block in _blocks(ours.shape[1], len(ours) + len(theirs)):
        found.addmm_(ours[:, block].double(), theirs[:, block].double().T)
    return found


def totals(rows: Tensor) -> Tensor:
    """Sums in float64, [t, ...] -> [t]; a sum of another type than its terms would copy them all first."""
    rows = rows.flatten(1)
    found = torch.zeros(len(rows), dtype=torch.float64, device=rows.device)
    for block in _blocks(rows.shape[1], len(rows)):
        found += rows[:, block].sum(1, dtype=torch.float64)
    return found


def _blocks(num_columns: int, num_rows: int) -> Iterator[slice]:
    """Of all columns; the copies in float64 of a block are as large as one row."""
    step = max(_LEAST_BLOCK, num_columns // (2 * num_rows))
    return (slice(start, start + step) for start in range(0, num_columns, step))


def check_tokens(teacher: Sequence[Tensor], student: Sequence[Tensor]) -> int:
    """N; raises BatchError unless all features are of the same tokens."""
    lengths = sorted({len(part) for part in (*teacher, *student)})
    if not teacher or not student or len(lengths) != 1 or lengths[0] == 0:
        raise BatchError(
            f"features: expected the same response tokens of every target, got {len(teacher)} teacher and "
            f"{len(student)} student targets of {lengths} tokens"
        )
    return lengths[0]


def check_words(teacher_head: Head, student_head: Head) -> None:
    """Raises VocabularyMismatchError unless both heads have as many words."""
    if teacher_head.num_words != student_head.num_words:
        raise VocabularyMismatchError(
            f"heads: expected both cut to the shared words, got {teacher_head.num_words} of the teacher and "
            f"{student_head.num_words} of the student"
        )
