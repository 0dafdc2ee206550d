"""Writes records as LLaVA JSONL."""

import json
from collections.abc import Iterable
from pathlib import Path

from vlmpress.data.errors import DataError
from vlmpress.data.records import Record


def write_records(file: Path, records: Iterable[Record], images: Path) -> None:
    """Writes one LLaVA record a line, image paths relative to `images`.

    Raises:
        DataError: An image is not below `images`.
    """
    with file.open("w", encoding="utf-8") as out:
        for record in records:
            out.write(json.dumps(_entry(record, images), ensure_ascii=False, sort_keys=True) + "\n")


def _entry(record: Record, images: Path) -> dict[str, object]:
    mark = "<image>\n" if record.image is not None else ""
    messages = []
    for position, turn in enumerate(record.turns):
        messages.append({"from": "human", "value": (mark if position == 0 else "") + turn.question})
        messages.append({"from": "gpt", "value": turn.answer})
    entry: dict[str, object] = {"id": record.id, "conversations": messages}
    if record.image is not None:
        if not record.image.is_relative_to(images):
            raise DataError(f"record {record.id}: image: expected a path below {images}, got {record.image}")
        entry["image"] = record.image.relative_to(images).as_posix()
    if record.split is not None:
        entry["split"] = record.split
    return entry
