"""Samples: images with their questions."""

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from stagetrain.errors import SampleError
from vlmpress.data import Record, RecordFile


@dataclass(frozen=True, slots=True)
class Sample:
    """Images and conversations about them; without images, one conversation.

    Attributes:
        images: Of every record.
        records: At least one.
        images_last: Whether images that may stand anywhere stand behind the first question.
    """

    images: tuple[Path, ...]
    records: tuple[Record, ...]
    images_last: bool = False


class ImageGroups(Sequence[Sample]):
    """Records grouped by images, in the order of their first appearance; a record without image stands alone.

    Raises:
        SampleError: There are no records.
    """

    def __init__(self, records: Sequence[Record]) -> None:
        groups: dict[int | tuple[Path, ...], list[Record]] = {}
        for number, record in enumerate(records):
            groups.setdefault(record.images or number, []).append(record)
        if not groups:
            raise SampleError("records to train on: expected at least one, got none")
        self._samples = [Sample(group[0].images, tuple(group)) for group in groups.values()]

    def __len__(self) -> int:
        return len(self._samples)

    def __getitem__(self, index: int) -> Sample:  # type: ignore[override]  # slices are not needed
        return self._samples[index]

    def measure(self, index: int) -> tuple[int, int]:
        """As the function `measure`."""
        return _measured(self._samples[index])


class SingleRecords(Sequence[Sample]):
    """Every record is a sample; it is read when it is asked for if `records` come from `open_records`.

    Raises:
        SampleError: There are no records.
    """

    def __init__(self, records: Sequence[Record]) -> None:
        if not records:
            raise SampleError("records to train on: expected at least one, got none")
        self._records = records

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, index: int) -> Sample:  # type: ignore[override]  # slices are not needed
        record = self._records[index]
        return Sample(record.images, (record,))

    def measure(self, index: int) -> tuple[int, int]:
        """As the function `measure`, without reading the record."""
        if isinstance(self._records, RecordFile):
            return self._records.text_length(index), self._records.num_images(index)
        return _measured(self[index])


def measure(samples: Sequence[Sample], index: int) -> tuple[int, int]:
    """Characters of a sample's questions and answers, and how many images it has."""
    if isinstance(samples, ImageGroups | SingleRecords):
        return samples.measure(index)
    return _measured(samples[index])


def _measured(sample: Sample) -> tuple[int, int]:
    return sum(record.text_length for record in sample.records), len(sample.images)


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
        return replace(sample, records=tuple(records[:limit]))
    units = [(record,) for record in records if _answer(record) is None] + list(zip(yes, no, strict=False))
    source.shuffle(units)
    drawn: list[Record] = []
    for unit in units:
        if len(drawn) + len(unit) <= limit:
            drawn.extend(unit)
    return replace(sample, records=tuple(drawn))


def _answer(record: Record) -> str | None:
    """The word yes or no for a single question answered so, else None."""
    word = record.turns[-1].answer.strip().lower().rstrip(".")
    return word if len(record.turns) == 1 and word in ("yes", "no") else None
