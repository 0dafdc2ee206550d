"""Which records a micro-batch takes."""

import random
from collections.abc import Iterator, Sequence

from verbdistill.data.rows import Row, RowMaker, fitting_rows
from verbdistill.errors import BatchError
from vlmpress.data import Record


class RecordOrder:
    """Records in an order shuffled anew for every pass, cut into micro-batches; a function of seed and index alone.

    Of several processes each takes its own rows of a micro-batch: rank r of w the rows r, r + w, ...
    """

    def __init__(self, records: Sequence[Record], *, batch_size: int, seed: int, rank: int, world_size: int) -> None:
        """Takes the records and the rows of a micro-batch over all processes.

        Raises:
            BatchError: There is no record, or not a row for every process.
        """
        if not records:
            raise BatchError("data: expected at least one record, got none")
        if world_size < 1 or not 0 <= rank < world_size or batch_size < world_size:
            raise BatchError(
                f"data: expected a rank below {world_size} and a batch size of at least {max(1, world_size)}, got "
                f"{rank} and {batch_size}"
            )
        self._records = records
        self._batch_size = batch_size
        self._seed = seed
        self._share = range(rank, batch_size, world_size)
        self._pass: tuple[int, list[int]] = (-1, [])

    def rows(self, index: int, makers: Sequence[RowMaker]) -> Iterator[list[Row]]:
        """For every row of this process in a micro-batch, 0-based: one row of each maker.

        A record too long for one of them gives its place to the next in the order that is not.

        Raises:
            BatchError: A record cannot be used, or none is short enough.
        """
        for row in self._share:
            yield self._first_fitting(index * self._batch_size + row, makers)

    def _first_fitting(self, position: int, makers: Sequence[RowMaker]) -> list[Row]:
        epoch, place = divmod(position, len(self._records))
        order = self._shuffled(epoch)
        for shift in range(len(order)):
            record = self._records[order[(place + shift) % len(order)]]
            rows = fitting_rows(record, makers)
            if rows is not None:
                return rows
        raise BatchError(f"data: expected a record of at most max_length tokens, got {len(order)} longer ones")

    def _shuffled(self, epoch: int) -> list[int]:
        if self._pass[0] != epoch:
            order = list(range(len(self._records)))
            random.Random(self._seed * 1_000_003 + epoch).shuffle(order)
            self._pass = (epoch, order)
        return self._pass[1]
