"""A file of an artifact that is being written, chunk by chunk."""

import fcntl
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from vlmpress.artifact import (
    ArtifactFaultError,
    digest_file,
    flush,
)
from vlmpress.artifact.v1 import artifact_pb2
from vlmpress_services.errors import ConflictError, InvalidRequestError, NotFoundError
from vlmpress_services.locking import is_at
from vlmpress_services.store.checksum import crc32c

MAX_CHUNK_BYTES = 1 << 20


class PartFile:
    """One file that is being written; several may be open on the same one.

    A call that is cancelled leaves its thread in the middle of a chunk: the file stays open until that has ended, so
    that what it still writes goes nowhere else.
    """

    def __init__(self, folder: Path, number: int, file: artifact_pb2.File) -> None:
        self._file = file
        self._part = folder / "parts" / str(number)
        self._whole = folder / "whole" / file.path
        try:
            self._handle = os.open(self._part, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        except FileNotFoundError:
            raise self._gone() from None
        self._guard = threading.Lock()
        self._num_users = 1

    def write(self, offset: int, data: bytes, checksum: int) -> int:
        """Persists the next chunk and gives its end; at the file's end the file is checked.

        Raises:
            InvalidRequestError: The chunk is too large, empty, or reaches beyond the file's end.
            ConflictError: `offset` is not the persisted size, which `metadata` holds.
            ArtifactFaultError: `checksum` is not the chunk's CRC-32C, and nothing is kept; or the file is whole and
                its SHA-256 is wrong, and it starts from 0 again.
        """
        end, name = offset + len(data), self._file.path
        if not 0 < len(data) <= MAX_CHUNK_BYTES or end > self._file.size_bytes:
            raise InvalidRequestError(
                f"{name}: expected 1 to {MAX_CHUNK_BYTES} bytes that end at {self._file.size_bytes} at most, "
                f"got {len(data)} that end at {end}"
            )
        if crc32c(data) != checksum:
            raise ArtifactFaultError(f"{name}: expected CRC-32C {crc32c(data):08x} at {offset}, got {checksum:08x}")
        with self._open(), self._alone():
            persisted = self._persisted_size()
            if offset != persisted:
                raise ConflictError(
                    f"{name}: expected a chunk at {persisted}, got one at {offset}",
                    metadata={"persisted_size": str(persisted)},
                )
            self._append(offset, data)
            if end == self._file.size_bytes:
                self._finish()
        return end

    def settle(self) -> None:
        """Checks a file whose writer was killed between its last chunk and its check; a wrong one starts from 0."""
        with self._alone(), suppress(ArtifactFaultError):
            if self._persisted_size() == self._file.size_bytes:
                self._finish()

    def close(self) -> None:
        """Ends this writer's part in it; what is persisted stays. Called once."""
        self._leave()

    @contextmanager
    def _open(self) -> Iterator[None]:
        with self._guard:
            if self._num_users == 0:
                raise InvalidRequestError(f"{self._file.path}: expected an open file, got a closed one")
            self._num_users += 1
        try:
            yield
        finally:
            self._leave()

    def _leave(self) -> None:
        with self._guard:
            self._num_users -= 1
            if self._num_users == 0:
                os.close(self._handle)

    def _append(self, offset: int, data: bytes) -> None:
        view = memoryview(data)
        try:
            while view:
                view = view[os.pwrite(self._handle, view, offset + len(data) - len(view)) :]
        except OSError:
            os.ftruncate(self._handle, offset)
            raise

    def _finish(self) -> None:
        # Another writer has just finished it, and who came after that one may have made a new part.
        if not is_at(self._part, self._handle):
            return
        try:
            digest = digest_file(self._part)
            # Before the rename: what stands among the whole files is whole after a power loss too.
            flush(self._part)
        except FileNotFoundError:
            raise self._gone() from None
        except OSError:
            # What the disk would not take is in doubt from then on, even if it takes it the next time.
            os.ftruncate(self._handle, 0)
            raise
        if digest != self._file.sha256:
            os.ftruncate(self._handle, 0)
            raise ArtifactFaultError(f"{self._file.path}: expected SHA-256 {self._file.sha256}, got {digest}")
        try:
            self._part.rename(self._whole)
        except FileNotFoundError:
            raise self._gone() from None

    def _gone(self) -> NotFoundError:
        """The write was committed or given up meanwhile."""
        return NotFoundError(f"artifact {self._part.parent.parent.name}: no write has begun")

    def _persisted_size(self) -> int:
        return os.fstat(self._handle).st_size

    @contextmanager
    def _alone(self) -> Iterator[None]:
        fcntl.flock(self._handle, fcntl.LOCK_EX)
        try:
            yield
        finally:
            fcntl.flock(self._handle, fcntl.LOCK_UN)
