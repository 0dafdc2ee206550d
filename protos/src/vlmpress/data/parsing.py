"""Makes records of the JSON values in a dataset file."""

import reprlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vlmpress.data.errors import DataError
from vlmpress.data.frames import list_frames
from vlmpress.data.marks import VIDEO_MARK, place_marks
from vlmpress.data.records import IMAGE_MARK, Record, Turn

SPLITS = ("train", "test")
SHORTENED = reprlib.Repr()
SHORTENED.maxstring = SHORTENED.maxother = 80


@dataclass(frozen=True, slots=True)
class Parser:
    """Checks one entry of a dataset file and makes a record of it.

    Attributes:
        folder: What image paths are relative to.
        max_frames: Frames taken of a video.
        look_for_files: Whether an image must be there; a folder of frames is looked into anyway.
    """

    folder: Path
    max_frames: int
    look_for_files: bool = True

    def record(self, place: str, entry: Any, index: int) -> Record:
        """The record.

        Args:
            place: File and line, for messages.
            entry: The JSON value.
            index: Place among the file's records, the id of a record that has none.

        Raises:
            DataError: Names the place, the field, what was expected and what came.
        """
        if not isinstance(entry, dict):
            raise DataError(f"{place}: expected an object, got {type(entry).__name__}")
        split = entry.get("split")
        if split is not None and split not in SPLITS:
            raise DataError(f"{place}: split: expected one of {', '.join(SPLITS)}, got {shown(split)}")
        texts = _conversation(place, entry["conversations"]) if "conversations" in entry else _question(place, entry)
        images = self._images(place, entry)
        questions = place_marks(place, texts[::2], len(images), video=entry.get("video") is not None)
        answers = [_answer(place, text) for text in texts[1::2]]
        turns = tuple(Turn(question, answer) for question, answer in zip(questions, answers, strict=True))
        return Record(id=_id(place, entry.get("id"), index), images=images, turns=turns, split=split)

    def _images(self, place: str, entry: dict[str, Any]) -> tuple[Path, ...]:
        image, video = entry.get("image"), entry.get("video")
        if video is not None:
            if image is not None:
                raise DataError(f"{place}: expected either image or video, got both")
            return list_frames(place, self.folder / _text(place, "video", video), self.max_frames)
        if isinstance(image, list):
            return tuple(self._image(place, f"image[{number}]", name) for number, name in enumerate(image))
        return () if image is None else (self._image(place, "image", image),)

    def _image(self, place: str, field: str, name: Any) -> Path:
        path = self.folder / _text(place, field, name)
        try:
            found = not self.look_for_files or path.is_file()
        except OSError:  # a name longer than the file system takes
            found = False
        if not found:
            raise DataError(f"{place}: {field}: expected a file, got none at {path}")
        return path


def _answer(place: str, text: str) -> str:
    for mark in (IMAGE_MARK, VIDEO_MARK):
        if mark in text:
            raise DataError(f"{place}: expected no {mark} in an answer, got {shown(text)}")
    return text.strip()


def _id(place: str, value: Any, index: int) -> str:
    if value is None:
        return str(index)
    if isinstance(value, bool) or not isinstance(value, str | int):
        raise DataError(f"{place}: id: expected text or an integer, got {shown(value)}")
    return _text(place, "id", str(value))


def _question(place: str, entry: dict[str, Any]) -> list[str]:
    if "question" not in entry:
        raise DataError(f"{place}: expected conversations, or question and answer, got {shown(list(entry))}")
    return [_text(place, field, entry.get(field)) for field in ("question", "answer")]


def _conversation(place: str, messages: Any) -> list[str]:
    if not isinstance(messages, list) or not messages or len(messages) % 2:
        got = f"{len(messages)} messages" if isinstance(messages, list) else type(messages).__name__
        raise DataError(f"{place}: conversations: expected pairs of human and gpt messages, got {got}")
    for position, message in enumerate(messages):
        speaker = ("human", "gpt")[position % 2]
        came = message.get("from") if isinstance(message, dict) else type(message).__name__
        if came != speaker:
            raise DataError(f"{place}: conversations[{position}]: expected from {speaker!r}, got {shown(came)}")
    return [_text(place, f"conversations[{i}].value", message.get("value")) for i, message in enumerate(messages)]


def _text(place: str, field: str, value: Any) -> str:
    if not isinstance(value, str) or not value.replace(IMAGE_MARK, "").replace(VIDEO_MARK, "").strip():
        raise DataError(f"{place}: {field}: expected text, got {shown(value)}")
    if any("\ud800" <= letter <= "\udfff" for letter in value):
        raise DataError(f"{place}: {field}: expected Unicode text, got half of a surrogate pair in {shown(value)}")
    return value


def shown(value: object) -> str:
    """What came, short enough for a line."""
    return SHORTENED.repr(value)
