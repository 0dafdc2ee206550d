"""What the workers of a job printed: bounded files while it runs, one artifact once it has ended."""

import re
import shutil
from importlib.metadata import version
from pathlib import Path
from typing import BinaryIO

from vlmpress.artifact.v1 import artifact_pb2
from vlmpress_services.jobs.table import Attempt
from vlmpress_services.store.interface import ArtifactStore

PART_BYTES = 1 << 20
LEFT_OUT = b"\n... the middle of this log was left out ...\n"
DISTRIBUTION = "vlmpress-services"

_PART = re.compile(r"attempt-(\d+)\.(\d+)")


def log_folder(store_root: Path, job_id: str) -> Path:
    """Where a job's output is until it has ended."""
    return store_root / "jobs" / "logs" / job_id


class AttemptLog:
    """Keeps the first part of an attempt's output and the last two, each in a file `attempt-NUMBER.PART`.

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
    texts: dict[int, bytes] = {}
    last: dict[int, int] = {}
    found = [_PART.fullmatch(path.name) for path in folder.glob("attempt-*.*")]
    for number, part in sorted((int(match[1]), int(match[2])) for match in found if match):
        if number in last and part != last[number] + 1:
            texts[number] += LEFT_OUT
        texts[number] = texts.get(number, b"") + (folder / f"attempt-{number}.{part}").read_bytes()
        last[number] = part
    return texts


def commit_logs(store: ArtifactStore, folder: Path, attempt: Attempt) -> str:
    """Makes an artifact of what a job's attempts printed, a file `attempt-NUMBER.log` each; gives its digest."""
    producer = (DISTRIBUTION, version(DISTRIBUTION))
    with store.draft() as draft:
        for number, text in ({attempt.number: b""} | attempt_texts(folder)).items():
            # Paths of the server are nobody else's business.
            text = text.replace(str(store.root).encode(), b"store")
            (draft.path / f"attempt-{number}.log").write_bytes(text)
        return draft.commit(artifact_pb2.Log(source=f"job {attempt.job_id}"), producer=producer).digest


def drop_logs(folder: Path) -> None:
    """Removes the files that an artifact has now."""
    shutil.rmtree(folder, ignore_errors=True)
