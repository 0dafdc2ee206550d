"""Records that are read from their file when they are asked for."""

from array import array
from collections.abc import Sequence
from pathlib import Path
from typing import overload

from vlmpress.data.errors import DataError
from vlmpress.data.lines import is_list, parse_line
from vlmpress.data.parsing import Parser
from vlmpress.data.reading import MAX_FRAMES, checked_records, chosen_by, image_folder, load_records
from vlmpress.data.records import Record

_LARGEST = (1 << 32) - 1


class RecordFile(Sequence[Record]):
    """The records of a JSONL file; made by `open_records`.

    Keeps 20 bytes for each: where its line begins, its place in the file, the length of its text and the number
    of its images. A pickle holds these and the file's name.

    Args:
        file: The dataset file.
        parser: How its entries are read.
        split: Only records of this split.

    Raises:
        DataError: As `load_records`.
    """

    def __init__(self, file: Path, parser: Parser, split: str | None) -> None:
        self._file = file
        self._offsets, self._places = array("Q"), array("I")
        self._lengths, self._counts = array("I"), array("I")
        self._stamp = self._now()
        for index, (entry, record) in enumerate(checked_records(file, parser)):
            if chosen_by(record, split):
                self._offsets.append(entry.offset)
                self._places.append(index)
                self._lengths.append(min(record.text_length, _LARGEST))
                self._counts.append(len(record.images))
        if not self._offsets:
            raise DataError(f"{file}: expected at least one record of split {split}, got none")
        # An image that has gone since is that record's fault when it is used, not the file's.
        self._parser = Parser(parser.folder, parser.max_frames, look_for_files=False)

    def __len__(self) -> int:
        return len(self._offsets)

    @overload
    def __getitem__(self, index: int) -> Record: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Record]: ...
    def __getitem__(self, index: int | slice) -> Record | Sequence[Record]:
        """Reads one record, or those of a slice.

        Raises:
            DataError: The file has changed since it was opened.
        """
        if isinstance(index, slice):
            return [self[place] for place in range(*index.indices(len(self)))]
        offset, place = self._offsets[index], self._places[index]
        if self._now() != self._stamp:
            raise DataError(f"{self._file}: expected the file as it was when it was opened, got a changed one")
        with self._file.open("rb") as stream:
            stream.seek(offset)
            line = stream.readline().decode()
        where = f"{self._file}: record {place}"
        return self._parser.record(where, parse_line(where, line), place)

    def text_length(self, index: int) -> int:
        """Characters of a record's questions and answers, without reading it."""
        return self._lengths[index]

    def num_images(self, index: int) -> int:
        """How many images a record has, without reading it."""
        return self._counts[index]

    def _now(self) -> tuple[int, int]:
        try:
            found = self._file.stat()
        except OSError as error:
            raise DataError(f"{self._file}: expected a readable dataset file, got {error.strerror}") from error
        return found.st_size, found.st_mtime_ns


def open_records(
    file: Path, images: Path | None = None, *, split: str | None = None, max_frames: int = MAX_FRAMES
) -> Sequence[Record]:
    """As `load_records`, but a JSONL file's records are read when they are asked for.

    One pass checks every line first. A JSON list has no lines to read by: it is loaded whole.

    Raises:
        DataError: As `load_records`.
    """
    folder = image_folder(file, images)
    try:
        with file.open("rb") as stream:
            whole = is_list(stream)
    except OSError as error:
        raise DataError(f"{file}: expected a readable dataset file, got {error.strerror}") from error
    if whole:
        return load_records(file, images, split=split, max_frames=max_frames)
    return RecordFile(file, Parser(folder, max_frames), split)
