"""What a teacher kept of its words against what a student says: k words and one bucket for all others.

N response tokens, n of a chunk, V words, k kept words.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from verbdistill.errors import BatchError, VocabularyMismatchError
from verbdistill.losses.heads import Head

_LEAST_REST = 1e-9
"""A smaller mass of all other words is rounding."""


@dataclass(frozen=True, slots=True)
class Said:
    """A student's words of a chunk: log-probabilities and probabilities [n, V], and the latter's sums in float64 [n].

    The sums of the very numbers that are in `p`: what is left without the kept ones keeps its digits.
    """

    log_p: Tensor
    p: Tensor
    total: Tensor

    @staticmethod
    def of(logits: Tensor) -> "Said":
        """Of a chunk's logits [n, V], which are overwritten."""
        log_p = F.log_softmax(logits, dim=-1)
        p = torch.exp(log_p, out=logits)
        return Said(log_p, p, p.sum(-1, dtype=torch.float64))

    def rest(self, words: Tensor) -> Tensor:
        """Mass of all words but these, float64 [n]."""
        return (self.total - self.p.gather(1, words).sum(-1, dtype=torch.float64)).clamp_min(_LEAST_REST)


@dataclass(frozen=True, slots=True)
class Kept:
    """A teacher target's kept words [N, k], their probabilities and logarithms, and the others' mass [N]; float64."""

    words: Tensor
    log_p: Tensor
    p: Tensor
    rest: Tensor

    @staticmethod
    def checked(words: Tensor, log_probabilities: Tensor, head: Head) -> "Kept":
        """Of ids and log-probabilities [N, k], for a student with this head.

        Raises:
            BatchError: They are not of one shape.
            VocabularyMismatchError: A kept word is not among the head's.
        """
        if words.shape != log_probabilities.shape or words.ndim != 2:
            raise BatchError(
                f"words: expected ids and log-probabilities of one shape [N, k], got {list(words.shape)} and "
                f"{list(log_probabilities.shape)}"
            )
        highest = int(words.max())
        if highest >= head.num_words:
            raise VocabularyMismatchError(
                f"words: expected kept words below {head.num_words}, those the student has, got {highest}"
            )
        log_p = log_probabilities.double()
        p = log_p.exp()
        rest = (1 - p.sum(-1)).clamp_min(0)
        # Nothing is left to be in it, whatever rounding says.
        return Kept(words, log_p, p, torch.zeros_like(rest) if words.shape[1] == head.num_words else rest)

    def __getitem__(self, chunk: slice) -> "Kept":
        return Kept(self.words[chunk], self.log_p[chunk], self.p[chunk], self.rest[chunk])

    def divergence(self, said: Said) -> Tensor:
        """KL over the kept words and the rest, float64 [n]."""
        kept = (self.p * (self.log_p - said.log_p.gather(1, self.words))).sum(-1)
        rest = torch.special.xlogy(self.rest, self.rest / said.rest(self.words))
        # Both masses are 1 but for rounding; with their own sums its error is of second order.
        return kept + rest + said.total - (self.p.sum(-1) + self.rest)

    def asked(self, said: Said) -> Tensor:
        """The probabilities where the loss is least, [n, V]: the rest shared out as the student does."""
        asked = said.p * (self.rest / said.rest(self.words)).to(said.p.dtype)[:, None]
        return asked.scatter_(1, self.words, self.p.to(said.p.dtype))
