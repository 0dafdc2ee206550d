"""Micro-batches of dataset records for one model."""

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from verbdistill.data.ordering import RecordOrder
from verbdistill.data.rows import RowMaker
from vlmpress.data import Record


class RecordBatches:
    """Right-padded micro-batches of whole conversations, one a row, for any family with a Hugging Face processor.

    The same index always gives the same micro-batch. Packing several questions of an image into one row
    is the training package's business.
    """

    def __init__(
        self,
        records: Sequence[Record],
        processor: Any,
        *,
        batch_size: int,
        seed: int,
        rank: int = 0,
        world_size: int = 1,
        max_length: int | None = None,
    ) -> None:
        """Takes records with images or of text alone.

        Args:
            records: Conversations.
            processor: The model's processor; a tokenizer will do where no record has an image.
            batch_size: Rows of a micro-batch over all processes.
            seed: Of the order.
            rank: Of this process, which gets the rows rank, rank + world_size, ...
            world_size: Processes.
            max_length: Most tokens of a row, images included; a longer conversation loses its last turns, and one
                whose first turn is longer gives its place to the next in the order.

        Raises:
            BatchError: There is no record, or a number is out of range.
        """
        self._order = RecordOrder(records, batch_size=batch_size, seed=seed, rank=rank, world_size=world_size)
        self._maker = RowMaker(processor, max_length)

    def __call__(self, index: int) -> dict[str, Tensor]:
        """The micro-batch of an index, 0-based: what `RowMaker.batch` says.

        Raises:
            BatchError: A conversation or an image cannot be used.
        """
        return self._maker.batch([row for (row,) in self._order.rows(index, (self._maker,))])
