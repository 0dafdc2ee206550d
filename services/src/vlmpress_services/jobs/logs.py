"""What the workers of a job printed: bounded files while it runs, one artifact once it has ended."""

import re
import shutil
from pathlib import Path
from typing import BinaryIO

from vlmpress.artifact.v1 import artifact_pb2
from vlmpress_services.jobs.table import Attempt
from vlmpress_services.producer import producer
from vlmpress_services.store.interface import ArtifactStore

PART_BYTES = 1 << 20
# Between the parts of a log whose middle is not kept, in its artifact.
LEFT_OUT = "\n... {} bytes of this log were left out ...\n"
LEFT_OUT_PATTERN = re.compile(rb"\n\.\.\. (\d+) bytes of this log were left out \.\.\.\n")

_PART = re.compile(r"attempt-(\d+)\.(\d+)")


def log_folder(store_root: Path, job_id: str) -> Path:
    """Where a job's output is until it has ended."""
    return store_root / "jobs" / "logs" / job_id


class AttemptLog:
    """Keeps the first part of an attempt's output and the last two, each in a file `attempt-NUMBER.PART`.

    All parts but the last have the same size, so a part's number says where in the output it was.

    Nothing waits in memory: a server that is killed leaves what it had.
    """

    def __init__(self, folder: Path, number: int, part_bytes: int = PART_BYTES) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._folder, self._number, self._part_bytes = folder, number, part_bytes
        # A server that follows an attempt again gets its output from the start.
        for path in folder.glob(f"attempt-{number}.*"):
            path.unlink()
        self._part = 0
        self._open()

    def write(self, data: bytes) -> None:
        """Appends."""
        while data:
            if self._room == 0:
                self._file.close()
                self._part += 1
                if self._part > 2:
                    self._path(self._part - 2).unlink()
                self._open()
            written = self._file.write(data[: self._room])
            self._room -= written
            data = data[written:]

    def close(self) -> None:
        """Ends the log."""
        self._file.close()

    def _open(self) -> None:
        self._file: BinaryIO = self._path(self._part).open("wb", buffering=0)
        self._room = self._part_bytes

    def _path(self, part: int) -> Path:
        return self._folder / f"attempt-{self._number}.{part}"


def attempt_texts(folder: Path) -> dict[int, bytes]:
    """What is kept of the output of every attempt, by its number."""
    found = [_PART.fullmatch(path.name) for path in folder.glob("attempt-*.*")]
    numbers = {int(match[1]) for match in found if match}
    return {number: _text([(part, path.read_bytes()) for part, path in parts(folder, number)]) for number in numbers}


def parts(folder: Path, number: int) -> list[tuple[int, Path]]:
    """The files of an attempt's output, in order, each with its place among all parts there ever were."""
    found = [(_PART.fullmatch(path.name), path) for path in folder.glob(f"attempt-{number}.*")]
    return sorted((int(match[2]), path) for match, path in found if match)


def _text(kept: list[tuple[int, bytes]]) -> bytes:
    text = b""
    before = -1
    for part, data in kept:
        if part != before + 1:
            # Every part but the last is as long as the first.
            text += LEFT_OUT.format((part - before - 1) * len(kept[0][1])).encode()
        text += data
        before = part
    return text


def commit_logs(store: ArtifactStore, folder: Path, attempt: Attempt) -> str:
    """Makes an artifact of what a job's attempts printed, a file `attempt-NUMBER.log` each; gives its digest."""
    with store.draft() as draft:
        for number, text in ({attempt.number: b""} | attempt_texts(folder)).items():
            (draft.path / f"attempt-{number}.log").write_bytes(text)
        return draft.commit(artifact_pb2.Log(source=f"job {attempt.job_id}"), producer=producer()).digest


def drop_logs(folder: Path) -> None:
    """Removes the files that an artifact has now."""
    shutil.rmtree(folder, ignore_errors=True)
