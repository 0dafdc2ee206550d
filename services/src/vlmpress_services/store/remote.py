"""A bucket's objects through obstore: create-only writes, compare-and-swap, and whether the bucket keeps to them."""

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

import obstore
from obstore.exceptions import AlreadyExistsError, BaseError, NotFoundError, PreconditionError
from obstore.store import ObjectStore as Remote

from vlmpress_services.errors import RemoteStoreError

# obstore raises builtins too, FileNotFoundError for a missing bucket.
FAULTS = (BaseError, OSError, NotImplementedError)

if TYPE_CHECKING:
    from obstore import UpdateVersion


@dataclass(frozen=True, slots=True)
class Stored:
    """An object: its key, size, and when it was written."""

    key: str
    size_bytes: int
    written: datetime


class Bucket:
    """Objects by key under a bucket's prefix; what obstore raises comes out as a one-line error of ours.

    Args:
        remote: The bucket.
        sole_writer: Nobody else writes there: its conditions need not hold, and are not asked for.
    """

    def __init__(self, remote: Remote, *, sole_writer: bool = False) -> None:
        self._remote = remote
        self._sole_writer = sole_writer

    def probe(self) -> None:
        """Checks that the bucket holds conditions on writes.

        Raises:
            RemoteStoreError: It writes over what must not be written over, or it cannot be written to at all.
        """
        if self._sole_writer:
            return
        key = f"probes/{os.urandom(8).hex()}"
        try:
            held = self.create(key, b"first") and not self.create(key, b"second")
            held = held and not self._update(key, b"third", {"e_tag": '"0"', "version": "1"})
            held = held and self.get(key) == b"first"
        finally:
            self.delete(key)
        if not held:
            raise RemoteStoreError(
                "store: expected a bucket that holds If-None-Match and If-Match on writes, got one that ignores them; "
                "only a sole writer may write there"
            )

    def get(self, key: str) -> bytes | None:
        """An object's bytes; None when there is none."""
        found = self.get_version(key)
        return None if found is None else found[0]

    def get_version(self, key: str) -> "tuple[bytes, UpdateVersion] | None":
        """An object's bytes and its version: S3 knows it by its entity tag, GCS by its generation."""
        try:
            answer = obstore.get(self._remote, key)
            return bytes(answer.bytes()), _version(answer.meta["e_tag"], answer.meta["version"])
        except (NotFoundError, FileNotFoundError):
            return None
        except FAULTS as error:
            raise _typed(error) from error

    def get_range(self, key: str, offset: int, size: int) -> bytes:
        """Bytes of an object from an offset on; fewer when it has no more, none when there is no such object."""
        if size == 0:
            return b""
        try:
            return bytes(obstore.get_range(self._remote, key, start=offset, length=size))
        except (NotFoundError, FileNotFoundError):
            return b""
        except FAULTS as error:
            raise _typed(error) from error

    def download(self, key: str, target: Path) -> bool:
        """Writes an object to a file, piece by piece; False when there is none."""
        try:
            answer = obstore.get(self._remote, key)
            with target.open("wb") as file:
                for piece in answer.stream():
                    file.write(piece)
        except (NotFoundError, FileNotFoundError):
            return False
        except BaseError as error:
            raise _typed(error) from error
        return True

    def put(self, key: str, content: bytes | Path) -> None:
        """Writes an object, over one that is there."""
        try:
            obstore.put(self._remote, key, content)
        except FAULTS as error:
            raise _typed(error) from error

    def create(self, key: str, data: bytes) -> bool:
        """Writes an object where there is none; False where there is one."""
        if self._sole_writer:
            if self.get(key) is not None:
                return False
            self.put(key, data)
            return True
        try:
            obstore.put(self._remote, key, data, mode="create", use_multipart=False)
        except AlreadyExistsError:
            return False
        except FAULTS as error:
            raise _typed(error) from error
        return True

    def swap(self, key: str, data: bytes, version: "UpdateVersion | None") -> bool:
        """Writes an object over one of a version (None: there must be none); False when it is another now."""
        if version is None:
            return self.create(key, data)
        if self._sole_writer:
            self.put(key, data)
            return True
        return self._update(key, data, version)

    def _update(self, key: str, data: bytes, version: "UpdateVersion") -> bool:
        try:
            obstore.put(self._remote, key, data, mode=version, use_multipart=False)
        except (PreconditionError, NotFoundError, FileNotFoundError):
            return False
        except FAULTS as error:
            raise _typed(error) from error
        return True

    def delete(self, *keys: str) -> None:
        """Deletes objects; those that are not there stay so."""
        for key in keys:
            try:
                obstore.delete(self._remote, key)
            except (NotFoundError, FileNotFoundError):
                continue
            except FAULTS as error:
                raise _typed(error) from error

    def list(self, prefix: str) -> Iterator[Stored]:
        """All objects whose keys begin with the parts of a prefix."""
        try:
            for page in obstore.list(self._remote, prefix):
                for meta in page:
                    yield Stored(meta["path"], meta["size"], meta["last_modified"])
        except FAULTS as error:
            raise _typed(error) from error

    def folders(self, prefix: str) -> Sequence[str]:
        """Names of the folders right below a prefix."""
        try:
            found = obstore.list_with_delimiter(self._remote, prefix)["common_prefixes"]
        except FAULTS as error:
            raise _typed(error) from error
        return sorted(path.rstrip("/").rpartition("/")[2] for path in found)

    def written(self, key: str) -> datetime | None:
        """When an object was written; None when there is none."""
        try:
            return obstore.head(self._remote, key)["last_modified"]
        except (NotFoundError, FileNotFoundError):
            return None
        except FAULTS as error:
            raise _typed(error) from error


def _version(e_tag: str | None, version: str | None) -> "UpdateVersion":
    found: UpdateVersion = {}
    if e_tag is not None:
        found["e_tag"] = e_tag
    if version is not None:
        found["version"] = version
    return found


def _typed(error: Exception) -> RemoteStoreError:
    # The first line says what happened; those after it are of use to obstore's authors, and may hold addresses.
    return RemoteStoreError(f"store: {type(error).__name__.removesuffix('Error')}: {str(error).splitlines()[0][:300]}")
