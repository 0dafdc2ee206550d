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
    flush_tree,
    from_json_bytes,
    make_folder,
    read,
)
from vlmpress.artifact.v1 import artifact_pb2
from vlmpress_services.errors import ConflictError, InvalidRequestError, NotFoundError, ServicesError
from vlmpress_services.locking import is_at
from vlmpress_services.store.names import check_digest, is_digest
from vlmpress_services.store.parts import PartFile

MAX_ARTIFACT_BYTES = 1 << 40
EXPIRY_S = 7 * 24 * 3600.0


class IncompleteWriteError(ServicesError, ArtifactError):
    """A write was committed before all of it was there."""


@dataclass(frozen=True, slots=True)
class FileStatus:
    """How many bytes of a file are persisted; all of them once its SHA-256 was found right."""

    path: str
    persisted_size: int


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
        with self._alone(digest, begins=True) as folder:
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
        whole.parent.mkdir(parents=True, exist_ok=True)
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
        with self._alone(digest) as folder:
            _, manifest = self._manifest(digest)
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
        try:
            with self._alone(digest) as folder:
                shutil.rmtree(folder, ignore_errors=True)
        except NotFoundError:
            return False
        return True

    def expire(self, age_s: float = EXPIRY_S) -> None:
        """Drops the writes that nobody has gone on with for so long."""
        if not self._folder.is_dir():
            return
        before_s = time.time() - age_s
        for name in sorted(path.name for path in self._folder.iterdir() if is_digest(path.name)):
            if _newest_s(self._folder / name) >= before_s:
                continue
            with suppress(NotFoundError), self._alone(name) as folder:
                # Somebody may have gone on with it while this waited.
                if _newest_s(folder) < before_s:
                    shutil.rmtree(folder, ignore_errors=True)

    @contextmanager
    def _alone(self, digest: str, *, begins: bool = False) -> Iterator[Path]:
        """The folder of a write, while nobody else begins or ends it; raises NotFoundError when there is none.

        Its lock is on the folder itself, so that it goes with it; who waited for a folder that is gone looks again.
        """
        check_digest(digest)
        folder = self._folder / digest
        while True:
            if begins:
                make_folder(folder)
            try:
                handle = os.open(folder, os.O_RDONLY | os.O_CLOEXEC)
            except FileNotFoundError:
                if begins:
                    continue
                raise NotFoundError(f"artifact {digest}: no write has begun") from None
            try:
                fcntl.flock(handle, fcntl.LOCK_EX)
                if is_at(folder, handle):
                    yield folder
                    return
            finally:
                os.close(handle)

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


def _newest_s(folder: Path) -> float:
    """When a write last went on, seconds since the epoch; that of a folder that is gone meanwhile is long ago."""
    newest_s = 0.0
    for path in (folder, folder / "parts", folder / "whole", *_entries(folder / "parts")):
        with suppress(FileNotFoundError):
            newest_s = max(newest_s, path.stat().st_mtime)
    return newest_s


def _entries(folder: Path) -> list[Path]:
    try:
        return list(folder.iterdir())
    except FileNotFoundError:
        return []


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0
