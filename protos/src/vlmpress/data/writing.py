"""Writes records as LLaVA JSONL."""

import json
from collections.abc import Iterable
from pathlib import Path

from vlmpress.data.errors import DataError
from vlmpress.data.records import IMAGE_MARK, Record


def write_records(file: Path, records: Iterable[Record], images: Path) -> None:
    """Writes one LLaVA record a line, image paths relative to `images`.

    Raises:
        DataError: An image is not below `images`.
    """
    with file.open("w", encoding="utf-8") as out:
        for record in records:
            out.write(json.dumps(_entry(record, images), ensure_ascii=False, sort_keys=True) + "\n")


def _entry(record: Record, images: Path) -> dict[str, object]:
    marked = any(IMAGE_MARK in turn.question for turn in record.turns)
    marks = "" if marked else f"{IMAGE_MARK}\n" * len(record.images)
    messages = []
    for position, turn in enumerate(record.turns):
        messages.append({"from": "human", "value": (marks if position == 0 else "") + turn.question})
        messages.append({"from": "gpt", "value": turn.answer})
    entry: dict[str, object] = {"id": record.id, "conversations": messages}
    names = [_relative(record, image, images) for image in record.images]
    if names:
        entry["image"] = names if len(names) > 1 else names[0]
    if record.split is not None:
        entry["split"] = record.split
    return entry


def _relative(record: Record, image: Path, images: Path) -> str:
    if not image.is_relative_to(images):
        raise DataError(f"record {record.id}: image: expected a path below {images}, got {image}")
    return image.relative_to(images).as_posix()
