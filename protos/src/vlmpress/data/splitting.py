"""Divides records into training and test sets."""

import random
from collections.abc import Sequence
from dataclasses import replace

from vlmpress.data.errors import DataError
from vlmpress.data.records import Record


def split_records(records: Sequence[Record], seed: int, test_share: float = 0.1) -> tuple[list[Record], list[Record]]:
    """Training and test records: as the file says, else a seeded share of the images.

    Whole images are drawn, so that no test image was ever seen in training: records that share an
    image stay together. A record without an image counts as an image of its own.

    Raises:
        DataError: One of the two sets would be empty.
    """
    if records and records[0].split is None:
        groups = _groups(records)
        keys = sorted(set(groups))
        chosen = set(random.Random(seed).sample(keys, max(1, round(len(keys) * test_share))))
        records = [
            replace(record, split="test" if group in chosen else "train")
            for record, group in zip(records, groups, strict=True)
        ]
    train = [record for record in records if record.split == "train"]
    test = [record for record in records if record.split == "test"]
    if not train or not test:
        raise DataError(f"expected training and test records, got {len(train)} and {len(test)}")
    return train, test


def _groups(records: Sequence[Record]) -> list[tuple[bool, str]]:
    """A name for each record, equal for all that share an image with it, directly or through others."""
    parents: dict[str, str] = {}

    def root(name: str) -> str:
        while parents.setdefault(name, name) != name:
            parents[name] = name = parents[parents[name]]
        return name

    for record in records:
        for image in record.images:
            # The lesser name of a group stands for it, whatever the order of the records.
            low, high = sorted((root(str(record.image)), root(str(image))))
            parents[high] = low
    return [(True, root(str(record.image))) if record.images else (False, record.id) for record in records]
