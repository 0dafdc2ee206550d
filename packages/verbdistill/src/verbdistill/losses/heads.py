"""The language head as losses need it: a matrix and perhaps a bias.

M rows of features, h hidden size, V words.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from verbdistill.errors import BatchError, VocabularyMismatchError

_BLOCK_ELEMENTS = 2**22
"""Elements of a half-precision head that are widened at once: 16 MiB."""


@dataclass(frozen=True, slots=True)
class Head:
    """Rows are words; features [N, h] -> logits [N, V].

    Attributes:
        weight: [V, h].
        bias: [V], or None.
    """

    weight: Tensor
    bias: Tensor | None = None

    @property
    def num_words(self) -> int:
        """V."""
        return len(self.weight)

    def first(self, num_words: int) -> "Head":
        """Without the rows behind the first `num_words`, which pad the vocabulary; a view."""
        return Head(self.weight[:num_words], None if self.bias is None else self.bias[:num_words])

    def rows(self, words: Tensor) -> "Head":
        """The rows of some words in their order, [K] int64 ids; a copy."""
        return Head(self.weight[words], None if self.bias is None else self.bias[words])

    def logits(self, features: Tensor) -> Tensor:
        """[..., h] -> [..., V]; float32, or float64 of float64 features: sums of exponentials need it."""
        dtype = working_dtype(features)
        features = features.to(dtype)
        with torch.autocast(features.device.type, enabled=False):
            if self.weight.dtype == dtype:
                return F.linear(features, self.weight, None if self.bias is None else self.bias.to(dtype))
            logits = features.new_empty(*features.shape[:-1], self.num_words)
            for block in self._blocks():
                logits[..., block] = features @ self.weight[block].to(dtype).T
            return logits if self.bias is None else logits.add_(self.bias)

    def pull_back(self, d_logits: Tensor) -> Tensor:
        """What a gradient of logits [..., V] is for their features, [..., h]; no graph."""
        weight = self.weight.detach()
        with torch.autocast(d_logits.device.type, enabled=False):
            if weight.dtype == d_logits.dtype:
                return d_logits @ weight
            gradient = d_logits.new_zeros(*d_logits.shape[:-1], weight.shape[1])
            for block in self._blocks():
                gradient += d_logits[..., block] @ weight[block].to(d_logits.dtype)
            return gradient

    def _blocks(self) -> Iterator[slice]:
        step = max(1, _BLOCK_ELEMENTS // self.weight.shape[1])
        return (slice(start, start + step) for start in range(0, self.num_words, step))


def working_dtype(*features: Tensor) -> torch.dtype:
    """The type that losses of these features are computed in: float64 if one of them has it, else float32."""
    return torch.float64 if any(part.dtype == torch.float64 for part in features) else torch.float32


def shared_heads(teacher: Head, student: Head, labels: Tensor) -> tuple[Head, Head]:
    """Both heads cut to the words they share, where they may differ in padding at the end.

    Args:
        teacher: The teacher's head.
        student: The student's.
        labels: Token ids of the response tokens, [N].

    Raises:
        VocabularyMismatchError: A response token lies beyond what is shared, so the rest is no padding.
        BatchError: There is no response token.
    """
    size = min(teacher.num_words, student.num_words)
    if labels.numel() == 0:
        raise BatchError("labels: expected at least one response token, got none")
    highest = int(labels.max())
    if highest >= size:
        raise VocabularyMismatchError(
            f"labels: expected token ids below the shared vocabulary of {size} (teacher {teacher.num_words}, "
            f"student {student.num_words}), got {highest}"
        )
    return teacher.first(size), student.first(size)
