"""Which weights of a matrix share one scale.

Shape letters: O rows (outputs), I columns (inputs), C channels (rows or columns, as the scheme's
axis says) of L weights each, G groups.
"""

import math
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from quantpack.errors import WeightError
from quantpack.scheme import Block, Scheme


def block_sizes(num_channels: int, scheme: Scheme) -> list[int]:
    """Channels in each block of the scheme: its share rounded up, the last block takes the rest."""
    sizes: list[int] = []
    for block in scheme.layout()[:-1]:
        # A whole number of channels must not become one more because its share is no exact float.
        wanted = math.ceil(block.share * num_channels - 1e-6)
        sizes.append(min(wanted, num_channels - sum(sizes)))
    return [*sizes, num_channels - sum(sizes)]


def num_groups(num_rows: int, num_cols: int, scheme: Scheme) -> int:
    """G, the number of scales of an [O, I] matrix; a channel's or a block's last group may be smaller."""
    num_channels, length = (num_rows, num_cols) if scheme.axis == "out" else (num_cols, num_rows)
    sizes = block_sizes(num_channels, scheme)
    return sum(_groups_in_block(size, length, block) for size, block in zip(sizes, scheme.layout(), strict=True))


def assign_channels(importance: Tensor, scheme: Scheme) -> Tensor | None:
    """The block of each channel, uint8 [C], most important channels first; None where there is one block.

    Args:
        importance: [C], max|X| of each channel (ECM section 3.2). Equal ones keep their order.
        scheme: Its blocks.
    """
    sizes = block_sizes(importance.numel(), scheme)
    if len(sizes) == 1:
        return None
    order = torch.argsort(importance, descending=True, stable=True)
    blocks = torch.empty(importance.numel(), dtype=torch.uint8)
    blocks[order] = torch.repeat_interleave(torch.arange(len(sizes), dtype=torch.uint8), torch.tensor(sizes))
    return blocks


def _groups_in_block(size: int, length: int, block: Block) -> int:
    if block.group_size:
        return size * -(-length // block.group_size)
    return -(-size // (block.num_channels or max(size, 1)))


@dataclass(frozen=True, kw_only=True, slots=True)
class Grid:
    """Weight l of channel c belongs to group first_group[c] + l // run[c].

    Attributes:
        shape: O and I.
        by_rows: True where a row is a channel, False where a column is.
        first_group: [C] int64.
        run: [C] int64, weights of a channel in a row that share a scale; L where the whole channel does.
        num_groups: G.
    """

    shape: tuple[int, int]
    by_rows: bool
    first_group: Tensor
    run: Tensor
    num_groups: int

    @classmethod
    def of(cls, shape: tuple[int, int], scheme: Scheme, channel_blocks: Tensor | None, name: str) -> Self:
        """The grid of a matrix.

        Args:
            shape: O and I.
            scheme: What shares a scale.
            channel_blocks: uint8 [C] of `assign_channels`; None where the scheme has one block.
            name: The tensor's name, for errors.

        Raises:
            WeightError: The blocks do not hold the channels that the scheme gives them.
        """
        num_channels, length = shape if scheme.axis == "out" else shape[::-1]
        layout, sizes = scheme.layout(), block_sizes(num_channels, scheme)
        if channel_blocks is None:
            channel_blocks = torch.zeros(num_channels, dtype=torch.uint8)
        if torch.bincount(channel_blocks.long(), minlength=len(sizes)).tolist() != sizes:
            raise WeightError(f"{name}: expected blocks of {sizes} channels, got {list(channel_blocks.shape)} others")
        first_group = torch.empty(num_channels, dtype=torch.int64)
        run = torch.empty(num_channels, dtype=torch.int64)
        begin = 0
        for number, (block, size) in enumerate(zip(layout, sizes, strict=True)):
            channels = torch.nonzero(channel_blocks == number).squeeze(1)
            if block.group_size:
                first = torch.arange(size) * -(-length // block.group_size)
            else:
                first = torch.arange(size) // (block.num_channels or max(size, 1))
            first_group[channels] = begin + first
            run[channels] = min(block.group_size or length, length)
            begin += _groups_in_block(size, length, block)
        return cls(shape=shape, by_rows=scheme.axis == "out", first_group=first_group, run=run, num_groups=begin)

    def spread(self, values: Tensor, begin: int = 0, end: int | None = None) -> Tensor:
        """[G] -> the value of each weight's group in rows `begin` to `end`, [end - begin, I]; maybe a view."""
        num_rows, num_cols = self.shape
        end = num_rows if end is None else end
        length = num_cols if self.by_rows else num_rows
        rows = slice(begin, end) if self.by_rows else slice(None)
        first, run = self.first_group[rows], self.run[rows]
        places = (0, num_cols) if self.by_rows else (begin, end)
        runs = torch.unique(run).tolist()
        if len(runs) == 1 and runs[0] < length:
            return _spread_runs(values, first, runs[0], places, by_rows=self.by_rows)
        whole = values[first]
        result = whole[:, None].expand(-1, num_cols) if self.by_rows else whole.expand(end - begin, num_cols)
        if runs == [length]:
            return result
        # Most channels are whole, and one value serves all of their weights; the others are put in their places.
        result = result.clone()
        for each in runs:
            if each < length:
                channels = torch.nonzero(run == each).squeeze(1)
                spread = _spread_runs(values, first[channels], each, places, by_rows=self.by_rows)
                result.index_copy_(0 if self.by_rows else 1, channels, spread)
        return result

    def extremes(self, matrix: Tensor, rows_at_once: int) -> tuple[Tensor, Tensor]:
        """The lowest and the highest weight of each group, or 0 where that is lower or higher; float32 [G].

        Args:
            matrix: [O, I].
            rows_at_once: Channels turned to float32 at a time.
        """
        low = torch.zeros(self.num_groups)
        high = torch.zeros(self.num_groups)
        channels = matrix if self.by_rows else matrix.T
        for run in torch.unique(self.run).tolist():
            chosen = torch.nonzero(self.run == run).squeeze(1)
            for part in chosen.split(rows_at_once):
                lowest, highest = _runs(channels[part].float(), run)
                groups = self.first_group[part, None] + torch.arange(lowest.shape[1])
                low.scatter_reduce_(0, groups.reshape(-1), lowest.reshape(-1), "amin")
                high.scatter_reduce_(0, groups.reshape(-1), highest.reshape(-1), "amax")
        return low, high


def _spread_runs(values: Tensor, first_group: Tensor, run: int, places: tuple[int, int], *, by_rows: bool) -> Tensor:
    """The values of some channels at places (begin, end) along them, channels down (`by_rows`) or across."""
    first, last = places[0] // run, (places[1] - 1) // run
    numbers = torch.arange(first, last + 1)
    along = 1 if by_rows else 0
    groups = first_group[:, None] + numbers if by_rows else first_group + numbers[:, None]
    spread = values[groups] if run == 1 else torch.repeat_interleave(values[groups], run, dim=along)
    return spread.narrow(along, places[0] - first * run, places[1] - places[0])


def _runs(channels: Tensor, run: int) -> tuple[Tensor, Tensor]:
    """[c, L] -> the lowest and highest of each run of `run` weights, each [c, ceil(L / run)]."""
    whole = channels.shape[1] // run * run
    groups = channels[:, :whole].unflatten(1, (-1, run)) if whole else channels[:, :0, None]
    low, high = (groups.amin(-1), groups.amax(-1)) if whole else (channels[:, :0], channels[:, :0])
    if whole < channels.shape[1]:
        tail = channels[:, whole:]
        low = torch.cat((low, tail.amin(1, keepdim=True)), 1)
        high = torch.cat((high, tail.amax(1, keepdim=True)), 1)
    return low, high
