"""Reads LLaVA JSON/JSONL and VQA JSONL files."""

import json
import reprlib
from pathlib import Path
from typing import Any

from vlmpress.data.errors import DataError
from vlmpress.data.records import Record, Turn

IMAGE_MARK = "<image>"
SPLITS = ("train", "test")
SHORTENED = reprlib.Repr()
SHORTENED.maxstring = SHORTENED.maxother = 80


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
        text = file.read_text(encoding="utf-8-sig")
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
        raise DataError(f"{place}: split: expected one of {', '.join(SPLITS)}, got {_shown(split)}")
    image = _image(place, entry.get("image"), folder)
    texts = _conversation(place, entry["conversations"]) if "conversations" in entry else _question(place, entry)
    num_marks = sum(text.count(IMAGE_MARK) for text in texts)
    if num_marks > (image is not None):
        raise DataError(f"{place}: expected one {IMAGE_MARK} where an image is given, else none, got {num_marks}")
    # The mark is dropped: where the image goes is the model's business.
    texts = [_without_mark(place, text) for text in texts]
    turns = tuple(Turn(question, answer) for question, answer in zip(texts[::2], texts[1::2], strict=True))
    return Record(id=_id(place, entry.get("id"), index), image=image, turns=turns, split=split)


def _without_mark(place: str, text: str) -> str:
    rest = text.replace(IMAGE_MARK, "").strip()
    if IMAGE_MARK in rest:
        raise DataError(f"{place}: expected no {IMAGE_MARK} around another, got {_shown(text)}")
    return rest


def _id(place: str, value: Any, index: int) -> str:
    if value is None:
        return str(index)
    if isinstance(value, bool) or not isinstance(value, str | int):
        raise DataError(f"{place}: id: expected text or an integer, got {_shown(value)}")
    return _text(place, "id", str(value))


def _image(place: str, name: Any, folder: Path) -> Path | None:
    if name is None:
        return None
    path = folder / _text(place, "image", name)
    try:
        found = path.is_file()
    except OSError:  # a name longer than the file system takes
        found = False
    if not found:
        raise DataError(f"{place}: image: expected a file, got none at {path}")
    return path


def _question(place: str, entry: dict[str, Any]) -> list[str]:
    if "question" not in entry:
        raise DataError(f"{place}: expected conversations, or question and answer, got {_shown(list(entry))}")
    return [_text(place, field, entry.get(field)) for field in ("question", "answer")]


def _conversation(place: str, messages: Any) -> list[str]:
    if not isinstance(messages, list) or not messages or len(messages) % 2:
        got = f"{len(messages)} messages" if isinstance(messages, list) else type(messages).__name__
        raise DataError(f"{place}: conversations: expected pairs of human and gpt messages, got {got}")
    for position, message in enumerate(messages):
        speaker = ("human", "gpt")[position % 2]
        came = message.get("from") if isinstance(message, dict) else type(message).__name__
        if came != speaker:
            raise DataError(f"{place}: conversations[{position}]: expected from {speaker!r}, got {_shown(came)}")
    return [_text(place, f"conversations[{i}].value", message.get("value")) for i, message in enumerate(messages)]


def _text(place: str, field: str, value: Any) -> str:
    if not isinstance(value, str) or not value.replace(IMAGE_MARK, "").strip():
        raise DataError(f"{place}: {field}: expected text, got {_shown(value)}")
    if any("\ud800" <= letter <= "\udfff" for letter in value):
        raise DataError(f"{place}: {field}: expected Unicode text, got half of a surrogate pair in {_shown(value)}")
    return value


def _shown(value: object) -> str:
    """What came, short enough for a line."""
    return SHORTENED.repr(value)
