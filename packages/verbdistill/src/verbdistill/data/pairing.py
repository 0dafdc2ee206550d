"""Micro-batches of dataset records for a pair of models with processors of their own."""

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from verbdistill.data.alignment import AlignedPairBatches
from verbdistill.data.batches import PairBatch
from verbdistill.data.ordering import RecordOrder
from verbdistill.data.rendering import tokenizer_of
from verbdistill.data.rows import Row, RowMaker
from verbdistill.errors import BatchError
from verbdistill.models.states import IGNORED
from verbdistill.models.vocabulary import check_vocabularies
from vlmpress.data import Record


class PairRecordBatches:
    """The same conversations in the same order, as each of the two models takes them.

    Tokens of images may differ, in number too; response tokens are the same, which is checked. With
    `is_aligned` tokenizers may differ as well, and rows are paired by their text (experimental).
    """

    def __init__(
        self,
        records: Sequence[Record],
        teacher_processor: Any,
        student_processor: Any,
        *,
        batch_size: int,
        seed: int,
        rank: int = 0,
        world_size: int = 1,
        max_length: int | None = None,
        is_aligned: bool = False,
    ) -> None:
        """Takes what `RecordBatches` does, with two processors; `max_length` holds for both models' rows.

        Raises:
            BatchError: As `RecordBatches`.
            VocabularyMismatchError: The tokenizers differ and `is_aligned` was not asked for.
        """
        tokenizers = [tokenizer_of(processor) for processor in (teacher_processor, student_processor)]
        self._order = RecordOrder(records, batch_size=batch_size, seed=seed, rank=rank, world_size=world_size)
        self._makers = RowMaker(teacher_processor, max_length), RowMaker(student_processor, max_length)
        self._newest: tuple[int, PairBatch] | None = None
        self._aligned: AlignedPairBatches | None = None
        if is_aligned:
            sources = (lambda index: self._pair(index).teacher), (lambda index: self._pair(index).student)
            self._aligned = AlignedPairBatches(*sources, *tokenizers)
        else:
            check_vocabularies(*(tokenizer.get_vocab() for tokenizer in tokenizers))

    def __call__(self, index: int) -> PairBatch:
        """The pair of a micro-batch, 0-based.

        Raises:
            BatchError: A conversation or an image cannot be used, or response tokens differ.
        """
        return self._pair(index) if self._aligned is None else self._aligned(index)

    def _pair(self, index: int) -> PairBatch:
        if self._newest is None or self._newest[0] != index:
            rows = list(self._order.rows(index, self._makers))
            if self._aligned is None:
                for number, pair in enumerate(rows):
                    _check_answers(*pair, where=f"micro-batch {index}, row {number}")
            teacher, student = (self._batch(side, [pair[side] for pair in rows]) for side in (0, 1))
            self._newest = index, PairBatch(teacher=teacher, student=student)
        return self._newest[1]

    def _batch(self, side: int, rows: Sequence[Row]) -> dict[str, Tensor]:
        return self._makers[side].batch(rows)


def _check_answers(teacher: Row, student: Row, *, where: str) -> None:
    theirs, ours = ([label for label in row.labels if label != IGNORED] for row in (teacher, student))
    if theirs != ours:
        raise BatchError(
            f"{where}: expected the same response tokens of both processors, got {len(theirs)} of the teacher's and "
            f"{len(ours)} of the student's: their chat templates or end tokens differ"
        )
