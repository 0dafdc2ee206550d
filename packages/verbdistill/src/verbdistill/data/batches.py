"""What a micro-batch is to a pair of models."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from torch import Tensor

Batch = Mapping[str, Tensor]
"""Arguments of a model's forward, and `labels` [B, T], -100 where nothing is to be predicted."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PairBatch:
    """A micro-batch for a teacher and a student whose processors or tokenizers differ.

    Attributes:
        teacher: The teacher's arguments.
        student: The student's, of the same conversations in the same order.
        teacher_rows: Response tokens of the teacher that stand for the same text as `student_rows`, in pairs:
            indices [M] into its response tokens counted through the batch; None: all, when both have the same.
        student_rows: Those of the student.
    """

    teacher: Batch
    student: Batch
    teacher_rows: Tensor | None = None
    student_rows: Tensor | None = None


Batches = Callable[[int], Batch | PairBatch]
"""The micro-batch of an index, 0-based over the whole run; the same index always gives the same one."""
