"""The language head as losses need it: a matrix and perhaps a bias."""

from dataclasses import dataclass

import torch
from torch import Tensor


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
        """[N, h] -> [N, V]."""
        return torch.nn.functional.linear(features, self.weight, self.bias)
