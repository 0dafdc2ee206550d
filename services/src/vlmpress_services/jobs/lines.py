"""What a worker says, between the lines that its libraries print: one JSON object a line behind a mark.

A worker's output reaches its server through a pipe or through a cluster's log, and nothing else does.
"""

import json
import os
from collections.abc import Mapping
from typing import Any

from google.protobuf import json_format

from vlmpress_services.jobs.progress import DETAILS, Details

MARK = b"@vlmpress-job "
# Longer writes to a pipe could be torn by other threads' output.
MAX_LINE_BYTES = 4096
MAX_TEXT_BYTES = 1500
MAX_OPEN_LINE_BYTES = 64 << 10


class Speaker:
    """The worker's end; `handle` is a file descriptor."""

    def __init__(self, handle: int) -> None:
        self._handle = handle

    def report(self, progress: float, message: str, details: Details | None = None) -> None:
        """Share of the work done and a line on what is being done."""
        said: dict[str, Any] = {"progress": progress, "message": _bounded(message)}
        for name, kind in DETAILS.items():
            if isinstance(details, kind):
                said[name] = json_format.MessageToDict(details, preserving_proto_field_name=True)
        self._say(said)

    def succeed(self, digest: str) -> None:
        """The result; the last thing said."""
        self._say({"result": digest})

    def fail(self, message: str) -> None:
        """Why there is no result; the last thing said."""
        self._say({"failed": _bounded(message)})

    def _say(self, said: dict[str, Any]) -> None:
        # A progress bar may have left its line open, hence the first newline.
        line = b"\n" + MARK + json.dumps(said, ensure_ascii=False).encode() + b"\n"
        assert len(line) <= MAX_LINE_BYTES, "texts are bounded"
        os.write(self._handle, line)


class Listener:
    """The server's end: takes output in pieces of any size apart."""

    def __init__(self) -> None:
        self._open = b""
        self._blank = b""

    def feed(self, data: bytes) -> tuple[list[dict[str, Any]], bytes]:
        """What was said in the whole lines so far, and the output around it."""
        *lines, self._open = (self._open + data).split(b"\n")
        said: list[dict[str, Any]] = []
        output = b""
        for line in lines:
            message = _message(line)
            if message is not None:
                # The newline before it was the speaker's.
                said.append(message)
                self._blank = b""
            elif line:
                output += self._blank + line + b"\n"
                self._blank = b""
            else:
                output += self._blank
                self._blank = b"\n"
        if len(self._open) > MAX_OPEN_LINE_BYTES:
            output, self._open = output + self._blank + self._open, b""
            self._blank = b""
        return said, output

    def rest(self) -> bytes:
        """Output that had no newline yet."""
        rest, self._open = self._open, b""
        return rest


def details_of(said: Mapping[str, Any]) -> Details | None:
    """The job's own terms of how far it is, if it said any."""
    for name, kind in DETAILS.items():
        if name in said:
            return json_format.ParseDict(said[name], kind(), ignore_unknown_fields=True)
    return None


def _message(line: bytes) -> dict[str, Any] | None:
    if not line.startswith(MARK):
        return None
    try:
        said = json.loads(line[len(MARK) :])
    except ValueError:
        return None
    return said if isinstance(said, dict) else None


def _bounded(text: str) -> str:
    # What is printable takes at most twice its bytes on the line.
    printable = "".join(each if each.isprintable() else " " for each in text)
    return " ".join(printable.split()).encode()[:MAX_TEXT_BYTES].decode(errors="ignore")
