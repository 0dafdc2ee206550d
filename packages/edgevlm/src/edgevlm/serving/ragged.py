"""Tensors whose rows have different numbers of slots along one axis, kept for a batch that rows join and leave.

Shapes: R rows that there is room for, n rows in use, L slots that there is room for.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

_SLOTS = 32
"""Slots come in pieces of this many: little is left over, for what lies between rows slows down reading them, and
copying all of them once in so many steps costs little beside reading all of them in every step."""


class RaggedRows:
    """Rows 0 to n - 1 of one tensor [R, ..., L, ...]; each begins at slot 0 and is zero after its end.

    Zeros, not leftovers: a masked key still takes part as 0 x value, and a value of a row that has left
    may have been no number.

    Args:
        axis: Of the slots, 1 or 2; rows are axis 0.
    """

    def __init__(self, axis: int) -> None:
        self._axis = axis
        self._kept: Tensor | None = None

    @property
    def num_bytes(self) -> int:
        """Memory held."""
        return 0 if self._kept is None else self._kept.numel() * self._kept.element_size()

    def put(self, row: int, value_k: Tensor, lengths: Sequence[int]) -> None:
        """Makes [k, ..., slots, ...] the whole content of the rows from `row` on, up to each one's own length."""
        longest, axis = max(lengths), self._axis
        value_k = value_k.narrow(axis, 0, longest)
        if self._kept is None:
            shape = list(value_k.shape)
            shape[0], shape[axis] = _doubled(1, row + len(lengths)), _in_pieces(longest)
            self._kept = value_k.new_zeros(shape)
        self.reserve(row + len(lengths), longest)
        if min(lengths) < longest:
            ends = torch.tensor(lengths, device=value_k.device)
            beyond = torch.arange(longest, device=value_k.device) >= ends[:, None]
            value_k = value_k.masked_fill(beyond.view(_beside(value_k, axis)), 0)
        target = self._kept[row : row + len(lengths)]
        target.narrow(axis, 0, longest).copy_(value_k)
        target.narrow(axis, longest, target.shape[axis] - longest).zero_()

    def write(self, slots_n: Tensor, new: Tensor) -> None:
        """Puts one new slot [n, ..., 1, ...] into each of the first n rows, at its own place."""
        assert self._kept is not None
        rows_n = torch.arange(len(slots_n), device=slots_n.device)
        if self._axis == 1:
            self._kept[rows_n, slots_n] = new[:, 0]
        else:
            self._kept[rows_n, :, slots_n] = new[:, :, 0]

    def view(self, num_rows: int, num_slots: int) -> Tensor:
        """The first rows, cut to `num_slots`."""
        assert self._kept is not None
        return self._kept[:num_rows].narrow(self._axis, 0, num_slots)

    def move(self, source: int, target: int) -> None:
        """Copies a row over another."""
        assert self._kept is not None
        self._kept[target] = self._kept[source]

    def clear(self, row: int, num_rows: int) -> None:
        """Makes rows empty."""
        self.reserve(row + num_rows, 0)
        assert self._kept is not None
        self._kept[row : row + num_rows].zero_()

    def reserve(self, num_rows: int, num_slots: int) -> None:
        """Makes room for so many rows and slots."""
        if self._kept is not None:
            rows, slots = self._kept.shape[0], self._kept.shape[self._axis]
            if rows < num_rows or slots < num_slots:
                self._resize(_doubled(rows, num_rows), max(slots, _in_pieces(num_slots)))

    def shrink(self, num_rows: int, num_slots: int) -> None:
        """Gives room back where less than half is in use, and all of it without rows."""
        if self._kept is None:
            return
        if num_rows == 0:
            self._kept = None
            return
        rows, slots = self._kept.shape[0], self._kept.shape[self._axis]
        wanted_rows = _doubled(1, num_rows) if 4 * num_rows <= rows else rows
        wanted_slots = _in_pieces(num_slots) if 2 * _in_pieces(num_slots) <= slots else slots
        if (wanted_rows, wanted_slots) != (rows, slots):
            self._resize(wanted_rows, wanted_slots)

    def _resize(self, num_rows: int, num_slots: int) -> None:
        assert self._kept is not None
        shape = list(self._kept.shape)
        common = min(num_rows, shape[0]), min(num_slots, shape[self._axis])
        shape[0], shape[self._axis] = num_rows, num_slots
        grown = self._kept.new_zeros(shape)
        grown[: common[0]].narrow(self._axis, 0, common[1]).copy_(self.view(*common))
        self._kept = grown


def _beside(value: Tensor, axis: int) -> list[int]:
    """Shape of something with rows and slots alone, to go with a tensor that has more axes."""
    return [size if dim in (0, axis) else 1 for dim, size in enumerate(value.shape)]


def _doubled(capacity: int, needed: int) -> int:
    """The first of `capacity`, twice as much, four times as much, ... that is enough."""
    while capacity < needed:
        capacity *= 2
    return capacity


def _in_pieces(num_slots: int) -> int:
    """Whole pieces, at least one."""
    return max(1, -(-num_slots // _SLOTS)) * _SLOTS
