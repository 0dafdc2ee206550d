"""Artifacts that clients are writing, known by their digests, so that anybody goes on where another stopped.

<folder>/<digest>/manifest.json   what is being written
<folder>/<digest>/parts/<number>  a file of the manifest, by its place there, as far as it has come
<folder>/<digest>/whole/<path>    a file whose SHA-256 was found right

A part's size is what is persisted of it. A power loss may damage what had not reached the disk: the SHA-256 at the
file's end finds that, and the file starts from 0 again.
"""

import fcntl
import os
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from vlmpress.artifact import (
    Artifact,
    ArtifactError,
    ArtifactFaultError,
    check_files,
    digest_bytes,
    digest_file,
    flush,
    flush_tree,
    from_json_bytes,
    make_folder,
    read,
)
from vlmpress.artifact.v1 import artifact_pb2
from vlmpress_services.errors import ConflictError, InvalidRequestError, NotFoundError, ServicesError
from vlmpress_services.store.checksum import crc32c
from vlmpress_services.store.names import check_digest

MAX_CHUNK_BYTES = 1 << 20
MAX_ARTIFACT_BYTES = 1 << 40
EXPIRY_S = 7 * 24 * 3600.0


class IncompleteWriteError(ServicesError, ArtifactError):
    """A write was committed before all of it was there."""


@dataclass(frozen=True, slots=True)
class FileStatus:
    """How many bytes of a file are persisted; all of them once its SHA-256 was found right."""

    path: str
    persisted_size: int


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
            raise NotFoundError(f"artifact {folder.name}: no write has begun") from None
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
        if not self._part.exists():
            return  # another writer has just finished it
        try:
            digest = digest_file(self._part)
            # Before the rename: what stands among the whole files is whole after a power loss too.
            flush(self._part)
        except OSError:
            # What the disk would not take is in doubt from then on, even if it takes it the next time.
            os.ftruncate(self._handle, 0)
            raise
        if digest != self._file.sha256:
            os.ftruncate(self._handle, 0)
            raise ArtifactFaultError(f"{self._file.path}: expected SHA-256 {self._file.sha256}, got {digest}")
        self._whole.parent.mkdir(parents=True, exist_ok=True)
        self._part.rename(self._whole)

    def _persisted_size(self) -> int:
        return os.fstat(self._handle).st_size

    @contextmanager
    def _alone(self) -> Iterator[None]:
        fcntl.flock(self._handle, fcntl.LOCK_EX)
        try:
            yield
        finally:
            fcntl.flock(self._handle, fcntl.LOCK_UN)


class Uploads:
    """What is being written into a store.

    Args:
        folder: Where it is kept; on the file system of what `publish` renames into.
        publish: Takes a whole artifact directory into the store.
    """

    def __init__(self, folder: Path, publish: Callable[[Artifact], Artifact]) -> None:
        self._folder = folder
        self._publish = publish

    def start(self, manifest_json: bytes) -> str:
        """Begins a write, or finds the one that has begun; gives its digest.

        Raises:
            ArtifactFaultError: The manifest is not canonical, or names files that no directory can hold.
            InvalidRequestError: Its files are larger together than a store takes.
        """
        manifest = from_json_bytes(manifest_json)
        check_files(manifest)
        size = sum(file.size_bytes for file in manifest.files)
        if size > MAX_ARTIFACT_BYTES:
            raise InvalidRequestError(
                f"manifest.json: expected at most {MAX_ARTIFACT_BYTES} bytes of files, got {size}"
            )
        for file in manifest.files:
            if file.size_bytes == 0 and file.sha256 != digest_bytes(b""):
                raise ArtifactFaultError(f"{file.path}: expected the SHA-256 of no bytes, got {file.sha256}")
        digest = digest_bytes(manifest_json)
        folder = self._folder / digest
        for part in (folder / "parts", folder / "whole"):
            make_folder(part)
        draft = folder / f".manifest.json.{os.urandom(8).hex()}"
        draft.write_bytes(manifest_json)
        draft.replace(folder / "manifest.json")
        for number, file in enumerate(manifest.files):
            self._settle(folder, number, file)
        return digest

    def _settle(self, folder: Path, number: int, file: artifact_pb2.File) -> None:
        part, whole = folder / "parts" / str(number), folder / "whole" / file.path
        if whole.is_file() or (file.size_bytes and _size(part) != file.size_bytes):
            return
        opened = PartFile(folder, number, file)
        try:
            opened.settle()
        finally:
            opened.close()

    def status(self, digest: str) -> list[FileStatus]:
        """How far each file of a write has come, in the manifest's order; raises NotFoundError when none has begun."""
        folder, manifest = self._manifest(digest)
        return [
            FileStatus(file.path, _size(folder / "whole" / file.path) or _size(folder / "parts" / str(number)))
            for number, file in enumerate(manifest.files)
        ]

    @contextmanager
    def open(self, digest: str, path: str) -> Iterator[PartFile]:
        """A file of a write that has begun; raises NotFoundError when there is none."""
        folder, manifest = self._manifest(digest)
        number = next((number for number, file in enumerate(manifest.files) if file.path == path), None)
        if number is None:
            raise NotFoundError(f"artifact {digest}: has no file {path[:160]!r}")
        file = manifest.files[number]
        if (folder / "whole" / path).is_file():
            raise ConflictError(
                f"{path}: expected no more chunks, the file is whole", metadata={"persisted_size": str(file.size_bytes)}
            )
        part = PartFile(folder, number, file)
        try:
            yield part
        finally:
            part.close()

    def commit(self, digest: str) -> Artifact:
        """Makes a whole write an artifact of the store, which outlives a power loss from here on.

        Raises:
            NotFoundError: No write has begun.
            IncompleteWriteError: A file is not whole; names the first one.
        """
        folder, manifest = self._manifest(digest)
        whole = folder / "whole"
        for file in manifest.files:
            if not (whole / file.path).is_file():
                raise IncompleteWriteError(
                    f"{file.path}: expected a whole file of {file.size_bytes} bytes before the commit"
                )
        (whole / "manifest.json").write_bytes((folder / "manifest.json").read_bytes())
        (whole / "manifest.sha256").write_text(f"{digest}\n", encoding="ascii")
        flush_tree(whole)
        artifact = self._publish(read(whole))
        shutil.rmtree(folder, ignore_errors=True)
        return artifact

    def abandon(self, digest: str) -> bool:
        """Drops a write; False when none has begun."""
        check_digest(digest)
        folder = self._folder / digest
        if not folder.is_dir():
            return False
        shutil.rmtree(folder, ignore_errors=True)
        return True

    def expire(self, age_s: float = EXPIRY_S) -> None:
        """Drops the writes that nobody has gone on with for so long."""
        if not self._folder.is_dir():
            return
        for folder in self._folder.iterdir():
            parts = (folder, folder / "parts", folder / "whole", *folder.glob("parts/*"))
            newest_s = max((path.stat().st_mtime for path in parts if path.exists()), default=0.0)
            if time.time() - newest_s > age_s:
                shutil.rmtree(folder, ignore_errors=True)

    def _manifest(self, digest: str) -> tuple[Path, artifact_pb2.Manifest]:
        check_digest(digest)
        folder = self._folder / digest
        try:
            data = (folder / "manifest.json").read_bytes()
        except FileNotFoundError:
            raise NotFoundError(f"artifact {digest}: no write has begun") from None
        return folder, _parsed(data)


@lru_cache(maxsize=8)
def _parsed(manifest_json: bytes) -> artifact_pb2.Manifest:
    # Asked for with every file of an artifact, of which there may be thousands.
    return from_json_bytes(manifest_json)


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0
