"""Reads LLaVA JSON/JSONL and VQA JSONL files."""

from collections.abc import Iterator
from pathlib import Path

from vlmpress.data.errors import DataError
from vlmpress.data.lines import Entry, read_entries
from vlmpress.data.parsing import Parser
from vlmpress.data.records import Record

MAX_FRAMES = 8
"""Frames taken of a video, as VideoLLaVA does."""


def load_records(
    file: Path, images: Path | None = None, *, split: str | None = None, max_frames: int = MAX_FRAMES
) -> list[Record]:
    """All records of a file, checked.

    A LLaVA record is {id?, image?, video?, split?, conversations: [{from: human|gpt, value}, ...]}; a VQA
    record has question and answer in place of conversations. `image` is a path or a list of paths, `video`
    a folder of frames. A file whose first character is `[` is one JSON list; anything else is one JSON
    object a line. All records are checked, those of another split too.

    Args:
        file: The dataset file.
        images: Folder that image paths are relative to; by default the file's own.
        split: Only records of this split; those of a file without splits are "train".
        max_frames: Frames taken of a video, evenly spread.

    Raises:
        DataError: Names the file, the line or record, what was expected and what came.
    """
    parser = Parser(image_folder(file, images), max_frames)
    records = [record for _, record in checked_records(file, parser)]
    chosen = [record for record in records if chosen_by(record, split)]
    if not chosen:
        raise DataError(f"{file}: expected at least one record of split {split}, got none")
    return chosen


def image_folder(file: Path, images: Path | None) -> Path:
    """The folder that image paths are relative to.

    Raises:
        DataError: There is no such folder.
    """
    folder = file.parent if images is None else images
    if not folder.is_dir():
        raise DataError(f"{folder}: expected a folder of images")
    return folder


def checked_records(file: Path, parser: Parser) -> Iterator[tuple[Entry, Record]]:
    """Every record with where it came from, in one pass.

    Raises:
        DataError: Something is wrong with the file; when nothing is left to come, with the whole of it.
    """
    given: set[bool] = set()
    for index, entry in enumerate(read_entries(file)):
        record = parser.record(entry.place, entry.value, index)
        given.add(record.split is None)
        yield entry, record
    if not given:
        raise DataError(f"{file}: expected at least one record, got none")
    if len(given) > 1:
        raise DataError(f"{file}: expected a split on every record or on none")


def chosen_by(record: Record, split: str | None) -> bool:
    """Whether a record is of a split; None is every split."""
    return split is None or (record.split or "train") == split
