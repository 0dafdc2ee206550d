"""What a student asks of a teacher, whether it is in this process, on a disk or on another machine.

N response tokens, t_l teacher targets, h the teacher's hidden size, V its vocabulary, k kept words.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from verbdistill.losses.heads import Head


@dataclass(frozen=True, kw_only=True, slots=True)
class TeacherAnswer:
    """What the teacher's language head reads of a batch's response tokens; no graph.

    Attributes:
        targets: Of every target, after its verbalizer's body and the final norm, [N, h] each.
        last: Of the last layer, after the final norm, [N, h].
        labels: Token ids to predict, in the teacher's numbering, [N].
    """

    targets: tuple[Tensor, ...]
    last: Tensor
    labels: Tensor


@dataclass(frozen=True, kw_only=True, slots=True)
class TruncatedAnswer:
    """The teacher's likeliest words and what is left for all others.

    Attributes:
        words: Of every target, then of the last layer: ids int64 [N, k] each, the likeliest first.
        log_probabilities: Natural logarithms of their probabilities, float32 [N, k] each.
        labels: As in `TeacherAnswer`.
    """

    words: tuple[Tensor, ...]
    log_probabilities: tuple[Tensor, ...]
    labels: Tensor


class Teacher(Protocol):
    """A frozen teacher with frozen verbalizers."""

    @property
    def layers(self) -> tuple[int, ...]:
        """Target layers, 1-based, ascending."""

    @property
    def head(self) -> Head:
        """The language head that reads its answers' features."""

    @property
    def fingerprint(self) -> str:
        """64 hex digits that change with its weights."""

    def answer(self, index: int, batch: Mapping[str, Tensor]) -> TeacherAnswer | TruncatedAnswer:
        """What it says of a micro-batch.

        Args:
            index: Number of the micro-batch over the whole run, 0-based: what is asked next is index + 1.
            batch: The teacher's own arguments; a teacher elsewhere makes the batch of an index itself.
        """
