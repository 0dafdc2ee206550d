"""The entries of a dataset file, one at a time."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from vlmpress.data.errors import DataError

BYTE_ORDER_MARK = b"\xef\xbb\xbf"


@dataclass(frozen=True, slots=True)
class Entry:
    """One value of a file.

    Attributes:
        place: File and line or record, for messages.
        value: The JSON value.
        offset: Byte where its line begins; 0 in a JSON list.
    """

    place: str
    value: Any
    offset: int


def read_entries(file: Path) -> Iterator[Entry]:
    """Entries in order; a file whose first character is `[` is one JSON list, anything else one value a line.

    Raises:
        DataError: The file cannot be read, is no UTF-8 text or no JSON.
    """
    try:
        with file.open("rb") as stream:
            yield from _json_list(file, stream) if is_list(stream) else _json_lines(file, stream)
    except OSError as error:
        raise DataError(f"{file}: expected a readable dataset file, got {error.strerror}") from error


def is_list(stream: BinaryIO) -> bool:
    """Whether the first character is `[`; the stream stands behind the byte order mark, if any, afterwards."""
    start = len(BYTE_ORDER_MARK) if stream.read(len(BYTE_ORDER_MARK)) == BYTE_ORDER_MARK else 0
    first = b""
    stream.seek(start)
    while not first and (block := stream.read(4096)):
        first = block.lstrip()
    stream.seek(start)
    return first.startswith(b"[")


def parse_line(place: str, line: str) -> Any:
    """The value on a line.

    Raises:
        DataError: It is no JSON.
    """
    try:
        return json.loads(line)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{place}: expected a JSON object, got {error}") from error


def _json_list(file: Path, stream: BinaryIO) -> Iterator[Entry]:
    text = _decode(file, stream.read(), 0)
    try:
        values = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{file}: expected a JSON list, got {error}") from error
    for index, value in enumerate(values):
        yield Entry(f"{file}: record {index}", value, 0)


def _json_lines(file: Path, stream: BinaryIO) -> Iterator[Entry]:
    offset = stream.tell()
    for number, line in enumerate(stream, 1):
        text = _decode(file, line, offset)
        if text.strip():
            place = f"{file}: line {number}"
            yield Entry(place, parse_line(place, text), offset)
        offset += len(line)


def _decode(file: Path, data: bytes, offset: int) -> str:
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        raise DataError(f"{file}: expected UTF-8 text, got a bad byte at offset {offset + error.start}") from error
