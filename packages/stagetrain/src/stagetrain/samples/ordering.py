"""Which samples a batch of a run holds: a pure function of (seed, number of the batch).

An epoch of a set of samples is all of them once, in an order of its own. Epochs follow each other
without a gap, so a batch may hold the end of one and the beginning of the next.
"""

import random
from array import array
from collections.abc import Iterator, Sequence
from itertools import chain
from typing import Literal, get_args

from stagetrain.errors import ConfigError
from stagetrain.samples.groups import Sample, measure

OrderName = Literal["shuffled", "length", "modality_length"]

MEGABATCH = 50
"""Batches whose samples are sorted by length together: enough to be alike, few enough to stay random."""

IMAGE_LENGTH = 2304
"""Characters of text that an image counts for: LLaVA-1.5's 576 tokens, four characters each."""

KEPT_EPOCHS = 2


class SampleStream:
    """Epochs of one set of samples.

    Args:
        name: Of the order's random source.
        indices: The samples.
        batch_size: Samples in a batch.
        lengths: Of all samples, by index; where given, the samples of a batch are of similar length.
    """

    def __init__(self, name: str, indices: "array[int]", batch_size: int, lengths: "array[int] | None" = None) -> None:
        self._name = name
        self._indices = indices
        self._batch_size = batch_size
        self._lengths = lengths
        self._kept: dict[int, array[int]] = {}

    def __len__(self) -> int:
        return len(self._indices)

    def batch(self, number: int) -> Iterator[tuple[int, int]]:
        """(epoch, sample) from the beginning of a batch on, without end."""
        place = number * self._batch_size
        while True:
            epoch, position = divmod(place, len(self._indices))
            yield epoch, self._order(epoch)[position]
            place += 1

    def num_batches_before(self, epoch: int) -> int:
        """Batches that begin before an epoch."""
        return -(-epoch * len(self._indices) // self._batch_size)

    def _order(self, epoch: int) -> "array[int]":
        # A batch reads from few orders in turn; they are cheap to make again.
        if epoch not in self._kept:
            while len(self._kept) >= KEPT_EPOCHS:
                del self._kept[next(iter(self._kept))]
            self._kept[epoch] = self._shuffled(epoch)
        return self._kept[epoch]

    def _shuffled(self, epoch: int) -> "array[int]":
        source = random.Random(f"{self._name} {epoch}")
        order = self._indices[:]
        source.shuffle(order)
        if self._lengths is None:
            return order
        size = self._batch_size
        # The first samples fill the batch that the epoch before has begun; from there on batches are whole.
        head = min(-epoch * len(order) % size, len(order))
        end = head + (len(order) - head) // size * size
        batches: list[array[int]] = []
        for start in range(head, end, size * MEGABATCH):
            similar = sorted(order[start : min(start + size * MEGABATCH, end)], key=self._length)
            batches += (array("q", similar[first : first + size]) for first in range(0, len(similar), size))
        source.shuffle(batches)
        return array("q", chain(order[:head], *batches, order[end:]))

    def _length(self, index: int) -> int:
        assert self._lengths is not None
        return self._lengths[index]

    def __getstate__(self) -> dict[str, object]:
        return {**self.__dict__, "_kept": {}}


class BatchOrder:
    """What every batch holds, from one stream of samples or from several that never share a batch.

    Args:
        streams: Sets of samples that batches come from; empty ones are left out.
        seed: Of the order in which streams give batches.
    """

    def __init__(self, streams: Sequence[SampleStream], seed: int) -> None:
        self._streams = [stream for stream in streams if len(stream)]
        self._seed = seed
        self._kept: tuple[int, array[int]] = (-1, array("b"))

    def batch(self, number: int) -> Iterator[tuple[int, int]]:
        """(epoch, sample) of a batch, followed without end by those that come next in its stream."""
        if len(self._streams) == 1:
            return self._streams[0].batch(number)
        epoch = self._epoch_of(number)
        givers = self._givers(epoch)
        before = number - self._num_before(epoch)
        stream = self._streams[givers[before]]
        return stream.batch(stream.num_batches_before(epoch) + givers[:before].count(givers[before]))

    def _num_before(self, epoch: int) -> int:
        return sum(stream.num_batches_before(epoch) for stream in self._streams)

    def _epoch_of(self, number: int) -> int:
        """The last epoch with no more than `number` batches before it, found by halving."""
        low, high = 0, 1
        while self._num_before(high) <= number:
            low, high = high, 2 * high
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if self._num_before(middle) <= number else (low, middle)
        return low

    def _givers(self, epoch: int) -> "array[int]":
        """The stream of each batch that begins in an epoch."""
        if self._kept[0] != epoch:
            givers = array("b")
            for place, stream in enumerate(self._streams):
                count = stream.num_batches_before(epoch + 1) - stream.num_batches_before(epoch)
                givers.extend([place] * count)
            random.Random(f"streams {self._seed} {epoch}").shuffle(givers)
            self._kept = (epoch, givers)
        return self._kept[1]


def order_samples(samples: Sequence[Sample], batch_size: int, seed: int, order: OrderName) -> BatchOrder:
    """The order of a run over `samples`.

    Args:
        samples: At least one.
        batch_size: Samples in a batch.
        seed: Of the order.
        order: "shuffled"; "length": samples of a batch are of similar length; "modality_length": the same, and
            samples with images never share a batch with those without.

    Raises:
        ConfigError: There is no such order.
    """
    if order not in get_args(OrderName):
        raise ConfigError(f"order of samples: expected one of {', '.join(get_args(OrderName))}, got {order!r}")
    everything, name = array("q", range(len(samples))), f"order {seed}"
    if order == "shuffled":
        return BatchOrder([SampleStream(name, everything, batch_size)], seed)
    lengths, pictured = array("q"), array("b")
    for index in everything:
        text_length, num_images = measure(samples, index)
        lengths.append(text_length + IMAGE_LENGTH * num_images)
        pictured.append(num_images > 0)
    if order == "length":
        return BatchOrder([SampleStream(name, everything, batch_size, lengths)], seed)
    parts = (array("q", (index for index in everything if pictured[index] == wanted)) for wanted in (1, 0))
    names = (f"{name} images", f"{name} text")
    streams = [SampleStream(one, part, batch_size, lengths) for one, part in zip(names, parts, strict=True)]
    return BatchOrder(streams, seed)
