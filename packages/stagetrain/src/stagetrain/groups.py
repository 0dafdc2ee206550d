"""Samples of images with their questions, and what each step of a run trains on."""

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Protocol

import torch
from torch.utils.data import Dataset

from stagetrain.errors import SampleError
from vlmpress.data import Record

Batch = dict[str, torch.Tensor]


@dataclass(frozen=True, slots=True)
class Sample:
    """An image and conversations about it; without an image, one conversation."""

    image: Path | None
    records: tuple[Record, ...]


class ImageGroups(Sequence[Sample]):
    """Records grouped by image, in the order of their first appearance; a record without image stands alone.

    Raises:
        SampleError: There are no records.
    """

    def __init__(self, records: Sequence[Record]) -> None:
        groups: dict[str, list[Record]] = {}
        for number, record in enumerate(records):
            key = f"text {number}" if not record.images else f"images {record.images}"
            groups.setdefault(key, []).append(record)
        if not groups:
            raise SampleError("records to train on: expected at least one, got none")
        self._samples = [Sample(group[0].image, tuple(group)) for group in groups.values()]

    def __len__(self) -> int:
        return len(self._samples)

    def __getitem__(self, index: int) -> Sample:  # type: ignore[override]  # slices are not needed
        return self._samples[index]


def draw_questions(sample: Sample, limit: int, seed: int, epoch: int, index: int) -> Sample:
    """At most `limit` records of a sample, as many answered yes as no where it has both.

    Yes and no are drawn in pairs; what has no partner is left to another epoch. An image with only
    one of the two keeps its questions: nothing could balance them. A pure function of its arguments.
    """
    source = random.Random(f"questions {seed} {epoch} {index}")
    records = list(sample.records)
    source.shuffle(records)
    yes = [record for record in records if _answer(record) == "yes"]
    no = [record for record in records if _answer(record) == "no"]
    if not yes or not no or limit < 2:
        return Sample(sample.image, tuple(records[:limit]))
    units = [(record,) for record in records if _answer(record) is None] + list(zip(yes, no, strict=False))
    source.shuffle(units)
    drawn: list[Record] = []
    for unit in units:
        if len(drawn) + len(unit) <= limit:
            drawn.extend(unit)
    return Sample(sample.image, tuple(drawn))


def _answer(record: Record) -> str | None:
    """The word yes or no for a single question answered so, else None."""
    word = record.turns[-1].answer.strip().lower().rstrip(".")
    return word if len(record.turns) == 1 and word in ("yes", "no") else None


class BatchMaker(Protocol):
    """Draws from a sample and makes a batch of samples."""

    def draw(self, sample: Sample, epoch: int, index: int) -> Sample:
        """What of a sample is used in an epoch."""
        ...

    def __call__(self, samples: Sequence[Sample]) -> Batch:
        """The tensors of a batch."""
        ...


class StepBatches(Dataset[Batch]):
    """Item `step` is the batch of that optimizer step: a pure function of (seed, step).

    Every epoch is a new order of all samples; a batch may span two epochs.

    Args:
        samples: What to train on.
        collator: Makes the batches.
        images_per_step: Samples in a batch.
        num_steps: Length of the run.
        seed: Of the order.
    """

    def __init__(
        self, samples: Sequence[Sample], collator: BatchMaker, images_per_step: int, num_steps: int, seed: int
    ) -> None:
        self._samples = samples
        self._collator = collator
        self._images_per_step = images_per_step
        self._num_steps = num_steps
        # A batch reads from at most a few orders in turn; they are cheap to make again.
        self._order: Callable[[int], list[int]] = lru_cache(maxsize=2)(self._shuffled)
        self._seed = seed

    def __len__(self) -> int:
        return self._num_steps

    def __getitem__(self, step: int) -> Batch:
        chosen = []
        for place in range(step * self._images_per_step, (step + 1) * self._images_per_step):
            epoch, position = divmod(place, len(self._samples))
            index = self._order(epoch)[position]
            chosen.append(self._collator.draw(self._samples[index], epoch, index))
        return self._collator(chosen)

    def _shuffled(self, epoch: int) -> list[int]:
        order = list(range(len(self._samples)))
        random.Random(f"order {self._seed} {epoch}").shuffle(order)
        return order
