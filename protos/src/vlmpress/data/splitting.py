"""Divides records into training and test sets."""

import random
from collections.abc import Sequence
from dataclasses import replace

from vlmpress.data.errors import DataError
from vlmpress.data.records import Record


def split_records(records: Sequence[Record], seed: int, test_share: float = 0.1) -> tuple[list[Record], list[Record]]:
    """Training and test records: as the file says, else a seeded share of the images.

    Whole images are drawn, so that no test image was ever seen in training; a record without an
    image counts as an image of its own.

    Raises:
        DataError: One of the two sets would be empty.
    """
    if records and records[0].split is None:
        keys = sorted({_key(record) for record in records})
        chosen = set(random.Random(seed).sample(keys, max(1, round(len(keys) * test_share))))
        records = [replace(record, split="test" if _key(record) in chosen else "train") for record in records]
    train = [record for record in records if record.split == "train"]
    test = [record for record in records if record.split == "test"]
    if not train or not test:
        raise DataError(f"expected training and test records, got {len(train)} and {len(test)}")
    return train, test


def _key(record: Record) -> tuple[bool, str]:
    return (True, str(record.image)) if record.image is not None else (False, record.id)
