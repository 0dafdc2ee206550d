"""A bucket (S3, GCS) as artifact store.

artifacts/<digest>/<path>            files and manifest.json
artifacts/<digest>/manifest.sha256   written last, create-only: until it is there, the artifact is not
tags/<name>                          an object holding a digest, swapped by its version; empty once it is removed

On this machine, under `root`: cache/<digest>/ artifacts as directories, fetched and checked before use; incoming/ and
uploads/ as in a store on a disk.
"""

import math
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from vlmpress.artifact import (
    Artifact,
    ArtifactFaultError,
    check_files,
    digest_bytes,
    flush_tree,
    from_json_bytes,
    read,
    verify,
)
from vlmpress.artifact.v1 import artifact_pb2
from vlmpress_services.errors import ConflictError, NotFoundError
from vlmpress_services.store.cache import Cache
from vlmpress_services.store.incoming import incoming_folder
from vlmpress_services.store.interface import ArtifactStore, Described, Expected, reachable
from vlmpress_services.store.names import check_digest, check_tag, is_digest, is_tag
from vlmpress_services.store.remote import Bucket
from vlmpress_services.store.tags import check_expected

if TYPE_CHECKING:
    from obstore import UpdateVersion

MANIFEST = "manifest.json"
MARK = "manifest.sha256"


@dataclass(frozen=True, slots=True)
class RemoteArtifact:
    """An artifact in a bucket."""

    manifest: artifact_pb2.Manifest
    digest: str

    @property
    def size_bytes(self) -> int:
        """Sum of the sizes of its files."""
        return sum(file.size_bytes for file in self.manifest.files)


class ObjectStore(ArtifactStore):
    """Artifacts by digest and tag in a bucket.

    Args:
        bucket: Where they are; `bucket.probe()` says whether several may write there.
        root: A folder of this machine, which need not outlive it.
        cache_bytes: Of fetched and sent artifacts kept there, beside those in use; None: no bound.
        lease_s: How long after `resolve` this process uses an artifact, seconds; infinity: as long as it lives.
    """

    def __init__(
        self, bucket: Bucket, root: Path, *, cache_bytes: int | None = None, lease_s: float = math.inf
    ) -> None:
        super().__init__(root)
        self._bucket = bucket
        self._cache = Cache(self.root / "cache", self._incoming, max_bytes=cache_bytes, lease_s=lease_s)
        # Manifests never change, so what was read once is known; whether the artifact is there is asked every time.
        self._manifests: dict[str, artifact_pb2.Manifest] = {}

    def publish(self, artifact: Artifact) -> Artifact:
        """Sends a whole artifact directory, its mark last; it is in the cache afterwards."""
        if self.has(artifact.digest):
            self.refresh(artifact.digest)
        else:
            for name in (*(file.path for file in artifact.manifest.files), MANIFEST):
                self._bucket.put(_key(artifact.digest, name), artifact.path / name)
            self._check_sizes(artifact)
            self._bucket.create(_key(artifact.digest, MARK), f"{artifact.digest}\n".encode())
        return self._keep(artifact)

    def find(self, ref: str) -> RemoteArtifact:
        """The artifact behind a digest or a tag, its manifest checked; errors as the interface says."""
        digest = ref if is_digest(ref) else self._tag_digest(ref)
        mark = self._bucket.get(_key(digest, MARK))
        if mark is None:
            raise NotFoundError(f"artifact {ref!r}: not in the store")
        if mark != f"{digest}\n".encode():
            raise ArtifactFaultError(f"artifact {digest}: expected its digest in {MARK}, got {mark[:80]!r}")
        if digest not in self._manifests:
            data = self._bucket.get(_key(digest, MANIFEST)) or b""
            if digest_bytes(data) != digest:
                raise ArtifactFaultError(f"artifact {digest}: expected a manifest of that digest, got another one")
            self._manifests[digest] = from_json_bytes(data)
        return RemoteArtifact(self._manifests[digest], digest)

    def resolve(self, ref: str) -> Artifact:
        """As `find`, fetched and checked, as a directory of this machine."""
        found = self.find(ref)
        place = self._cache.get(found.digest)
        if place is not None:
            return read(place)
        check_files(found.manifest)
        with incoming_folder(self._incoming) as folder:
            target = folder / "artifact"
            for name in (*(file.path for file in found.manifest.files), MANIFEST, MARK):
                (target / name).parent.mkdir(parents=True, exist_ok=True)
                self._fetch(_key(found.digest, name), target / name)
            artifact = verify(target)
            flush_tree(target)
            return self._keep(artifact)

    def verify(self, ref: str) -> Artifact:
        """Fetches an artifact anew and checks every byte, of the bucket and of the cache."""
        found = self.find(ref)
        sizes = {stored.key: stored.size_bytes for stored in self._bucket.list(f"artifacts/{found.digest}")}
        listed = {_key(found.digest, name) for name in (*(file.path for file in found.manifest.files), MANIFEST, MARK)}
        for key in sorted(sizes.keys() ^ listed):
            raise ArtifactFaultError(f"{key}: expected just the files that the manifest lists, got one more or fewer")
        with incoming_folder(self._incoming) as folder:
            for key in sorted(listed):
                target = folder / key
                target.parent.mkdir(parents=True, exist_ok=True)
                self._fetch(key, target)
            artifact = verify(folder / "artifacts" / found.digest)
            place = self._cache.get(found.digest)
            if place is None:
                flush_tree(artifact.path)
                return self._keep(artifact)
        return verify(place)

    def read(self, digest: str, path: str, offset: int, size: int) -> bytes:
        """`size` bytes of a file that the manifest lists; raises ArtifactFaultError when they are not there."""
        data = self._bucket.get_range(_key(digest, path), offset, size)
        if len(data) != size:
            raise ArtifactFaultError(f"{_key(digest, path)}: expected {size} bytes at {offset}, got {len(data)}")
        return data

    def digests(self) -> tuple[str, ...]:
        """Digests of all artifacts, sorted."""
        return tuple(sorted(digest for digest, mark in self._marks().items() if mark))

    def tags(self) -> dict[str, str]:
        """Digest of every tag, by name."""
        names = sorted(stored.key.removeprefix("tags/") for stored in self._bucket.list("tags"))
        found = {name: self._tag(name)[0] for name in names if is_tag(name)}
        return {name: digest for name, digest in found.items() if digest is not None}

    def tag(self, name: str, digest: str, expected: Expected | None = None) -> None:
        """Points a tag at an artifact, atomically; errors as the interface says."""
        check_tag(name)
        check_digest(digest, f"tag {name!r}")
        self.find(digest)
        self._swap(name, digest, expected)
        # Garbage collection takes the mark away first and looks at the tags then: one of both sees the other.
        if not self.has(digest):
            with suppress(ConflictError):
                self._swap(name, None, Expected(digest))
            raise NotFoundError(f"artifact {digest!r}: not in the store any more")

    def untag(self, name: str, expected: Expected | None = None) -> bool:
        """Removes a tag; False when there is none."""
        check_tag(name)
        return self._swap(name, None, expected)

    def refresh(self, digest: str) -> None:
        """As the interface says."""
        key = _key(digest, MARK)
        while True:
            self.find(digest)
            found = self._bucket.get_version(key)
            # Only over the mark that is there: garbage collection may have taken it away, and the files with it.
            if found is not None and self._bucket.swap(key, *found):
                return

    def collect_garbage(
        self, roots: Callable[[], Iterable[str]], min_age_s: float, *, dry_run: bool = False
    ) -> Sequence[Described]:
        """Takes away the marks of what nothing leads to, and the files of what has had no mark for `min_age_s`.

        So whoever is sending the same artifact at this moment has `min_age_s` to end; 0 is for when nobody writes.
        """
        self.uploads.expire()
        there = {digest: self.find(digest) for digest in self.digests()}
        young = [digest for digest in there if self._age_s(digest) < min_age_s]
        kept = reachable(there, [*self.tags().values(), *roots(), *young])
        garbage = [artifact for digest, artifact in there.items() if digest not in kept]
        if not dry_run:
            # Asked again at the last moment: whoever wrote the same meanwhile was told that it is there.
            garbage = [artifact for artifact in garbage if self._take_mark(artifact.digest, min_age_s)]
            # A tag that was set meanwhile brings back what it leads to.
            again = reachable(there, self.tags().values())
            for digest in again - kept:
                self._bucket.create(_key(digest, MARK), f"{digest}\n".encode())
            garbage = [artifact for artifact in garbage if artifact.digest not in again]
            self._delete_unmarked(min_age_s)
        return garbage

    def _take_mark(self, digest: str, min_age_s: float) -> bool:
        is_old = self._age_s(digest) >= min_age_s
        if is_old:
            self._bucket.delete(_key(digest, MARK))
        return is_old

    def _delete_unmarked(self, min_age_s: float) -> None:
        for digest, mark in self._marks().items():
            if mark:
                continue
            stored = list(self._bucket.list(f"artifacts/{digest}"))
            if all(time.time() - each.written.timestamp() >= min_age_s for each in stored):
                self._bucket.delete(*(each.key for each in stored))

    def _marks(self) -> dict[str, bool]:
        """Whether each digest of which there are objects has its mark."""
        digests = [name for name in self._bucket.folders("artifacts") if is_digest(name)]
        return {digest: self._bucket.written(_key(digest, MARK)) is not None for digest in digests}

    def _age_s(self, digest: str) -> float:
        written = self._bucket.written(_key(digest, MARK))
        return 0.0 if written is None else time.time() - written.timestamp()

    def _tag(self, name: str) -> "tuple[str | None, UpdateVersion | None]":
        """A tag's digest and its object's version; a removed one has no digest, one never set neither."""
        found = self._bucket.get_version(f"tags/{name}")
        if found is None:
            return None, None
        digest = found[0].decode("ascii", errors="replace").removesuffix("\n")
        if digest and not is_digest(digest):
            raise ArtifactFaultError(f"tag {name!r}: expected a digest of 64 hex digits, got {digest[:80]!r}")
        return digest or None, found[1]

    def _tag_digest(self, name: str) -> str:
        check_tag(name)
        digest, _ = self._tag(name)
        if digest is None:
            raise NotFoundError(f"artifact {name!r}: no such tag in the store")
        return digest

    def _swap(self, name: str, digest: str | None, expected: Expected | None) -> bool:
        """Changes a tag; False when it was so already."""
        while True:
            found, version = self._tag(name)
            if found == digest:
                return False
            check_expected(name, found, expected)
            if self._bucket.swap(f"tags/{name}", f"{digest}\n".encode() if digest else b"", version):
                return True

    def _check_sizes(self, artifact: Artifact) -> None:
        sizes = {stored.key: stored.size_bytes for stored in self._bucket.list(f"artifacts/{artifact.digest}")}
        for file in artifact.manifest.files:
            size = sizes.get(_key(artifact.digest, file.path))
            if size != file.size_bytes:
                raise ArtifactFaultError(f"{file.path}: expected {file.size_bytes} bytes in the bucket, got {size}")

    def _fetch(self, key: str, target: Path) -> None:
        if not self._bucket.download(key, target):
            raise ArtifactFaultError(f"{key}: expected an object in the bucket, got none")

    def _keep(self, artifact: Artifact) -> Artifact:
        """Moves a whole directory into the cache; the first of equal ones stays."""
        return Artifact(self._cache.put(artifact), artifact.manifest, artifact.digest)


def _key(digest: str, name: str) -> str:
    return f"artifacts/{digest}/{name}"
