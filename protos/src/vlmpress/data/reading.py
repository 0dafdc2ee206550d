"""Reads LLaVA JSON/JSONL and VQA JSONL files."""

import json
from pathlib import Path
from typing import Any

from vlmpress.data.errors import DataError
from vlmpress.data.records import Record, Turn

IMAGE_MARK = "<image>"
SPLITS = ("train", "test")


def load_records(file: Path, images: Path | None = None) -> list[Record]:
    """All records of a file, checked.

    A LLaVA record is {id?, image?, split?, conversations: [{from: human|gpt, value}, ...]}; a VQA
    record is {split?, image, question, answer}. A file whose first character is `[` is one JSON
    list; anything else is one JSON object a line.

    Args:
        file: The dataset file.
        images: Folder that image paths are relative to; by default the file's own.

    Raises:
        DataError: Names the file, the line or record, what was expected and what came.
    """
    try:
        text = file.read_text(encoding="utf-8")
    except OSError as error:
        raise DataError(f"{file}: expected a readable dataset file, got {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise DataError(f"{file}: expected UTF-8 text, got a bad byte at offset {error.start}") from error
    folder = file.parent if images is None else images
    if not folder.is_dir():
        raise DataError(f"{folder}: expected a folder of images")
    entries = _json_list(file, text) if text.lstrip().startswith("[") else _json_lines(file, text)
    records = [_record(place, entry, folder, index) for index, (place, entry) in enumerate(entries)]
    if not records:
        raise DataError(f"{file}: expected at least one record, got none")
    given = {record.split is None for record in records}
    if len(given) > 1:
        raise DataError(f"{file}: expected a split on every record or on none")
    return records


def _json_list(file: Path, text: str) -> list[tuple[str, Any]]:
    try:
        entries = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{file}: expected a JSON list, got {error}") from error
    return [(f"{file}: record {index}", entry) for index, entry in enumerate(entries)]


def _json_lines(file: Path, text: str) -> list[tuple[str, Any]]:
    entries = []
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        try:
            entries.append((f"{file}: line {number}", json.loads(line)))
        except (ValueError, RecursionError) as error:
            raise DataError(f"{file}: line {number}: expected a JSON object, got {error}") from error
    return entries


def _record(place: str, entry: Any, folder: Path, index: int) -> Record:
    if not isinstance(entry, dict):
        raise DataError(f"{place}: expected an object, got {type(entry).__name__}")
    split = entry.get("split")
    if split is not None and split not in SPLITS:
        raise DataError(f"{place}: split: expected one of {', '.join(SPLITS)}, got {split!r}")
    image = _image(place, entry.get("image"), folder)
    turns = _conversation(place, entry["conversations"]) if "conversations" in entry else _question(place, entry)
    return Record(id=str(entry.get("id", index)), image=image, turns=turns, split=split)


def _image(place: str, name: Any, folder: Path) -> Path | None:
    if name is None:
        return None
    if not isinstance(name, str) or not name:
        raise DataError(f"{place}: image: expected a path, got {name!r}")
    path = folder / name
    if not path.is_file():
        raise DataError(f"{place}: image: expected a file, got none at {path}")
    return path


def _question(place: str, entry: dict[str, Any]) -> tuple[Turn, ...]:
    if "question" not in entry:
        raise DataError(f"{place}: expected conversations, or question and answer, got {', '.join(entry) or 'nothing'}")
    return (Turn(_text(place, "question", entry.get("question")), _text(place, "answer", entry.get("answer"))),)


def _conversation(place: str, messages: Any) -> tuple[Turn, ...]:
    if not isinstance(messages, list) or not messages or len(messages) % 2:
        got = f"{len(messages)} messages" if isinstance(messages, list) else type(messages).__name__
        raise DataError(f"{place}: conversations: expected pairs of human and gpt messages, got {got}")
    for position, message in enumerate(messages):
        speaker = ("human", "gpt")[position % 2]
        came = message.get("from") if isinstance(message, dict) else type(message).__name__
        if came != speaker:
            raise DataError(f"{place}: conversations[{position}]: expected from {speaker!r}, got {came!r}")
    values = [_text(place, f"conversations[{i}].value", message.get("value")) for i, message in enumerate(messages)]
    return tuple(Turn(question, answer) for question, answer in zip(values[::2], values[1::2], strict=True))


def _text(place: str, field: str, value: Any) -> str:
    """The text of a field without the image mark: the image's place is the model's business."""
    if not isinstance(value, str) or not value.replace(IMAGE_MARK, "").strip():
        raise DataError(f"{place}: {field}: expected text, got {value!r}")
    return value.replace(IMAGE_MARK, "").strip()
