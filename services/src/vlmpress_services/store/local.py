"""A directory as artifact store.

artifacts/<digest>/   whole artifacts, never changed
tags/<name>           a file holding a digest, replaced atomically
uploads/<digest>/     what clients are writing; nobody looks here before the commit
incoming/<random>/    drafts being filled, and what is being deleted; nobody looks here
"""

import os
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

from vlmpress.artifact import (
    Artifact,
    ArtifactError,
    ArtifactFaultError,
    flush,
    make_folder,
    read,
)
from vlmpress_services.errors import NotFoundError
from vlmpress_services.store.incoming import incoming_folder
from vlmpress_services.store.interface import ArtifactStore, Described, Expected, reachable
from vlmpress_services.store.names import check_digest, is_digest
from vlmpress_services.store.tags import LocalTags


class LocalStore(ArtifactStore):
    """Artifacts by digest and tag under one directory, made on the first write."""

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self._artifacts = self.root / "artifacts"
        self._tags = LocalTags(self.root / "tags", self.root / "tags.lock")

    def publish(self, artifact: Artifact) -> Artifact:
        """Renames a whole artifact directory into the store; the first of equal ones stays."""
        target = self._artifacts / artifact.digest
        make_folder(self._artifacts)
        with self._tags.held():
            try:
                artifact.path.rename(target)
            except OSError:
                if not target.is_dir():
                    raise
            os.utime(target)
        self._flush()
        return Artifact(target, artifact.manifest, artifact.digest)

    def find(self, ref: str) -> Artifact:
        """The artifact behind a digest or a tag, its manifest checked; errors as the interface says."""
        path = self.locate(ref)
        try:
            artifact = read(path)
        except ArtifactFaultError:
            raise
        except ArtifactError as error:
            if not path.is_dir():
                raise NotFoundError(f"artifact {ref!r}: not in the store") from None
            raise ArtifactFaultError(str(error)) from error
        if artifact.digest != path.name:
            raise ArtifactFaultError(f"{path}: expected a manifest of that digest, got {artifact.digest}")
        return artifact

    def resolve(self, ref: str) -> Artifact:
        """As `find`: everything is a directory of this machine already."""
        return self.find(ref)

    def read(self, digest: str, path: str, offset: int, size: int) -> bytes:
        """`size` bytes of a file that the manifest lists; raises ArtifactFaultError when they are not there."""
        place = self._artifacts / digest / path
        data = b""
        try:
            with place.open("rb", buffering=0) as file:
                file.seek(offset)
                data = file.read(size)
        except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
            pass
        if len(data) != size:
            raise ArtifactFaultError(f"{place}: expected {size} bytes at {offset}, got {len(data)}")
        return data

    def locate(self, ref: str) -> Path:
        """The folder behind a digest or tag, nothing in it read; errors as `resolve`."""
        path = self._artifacts / (ref if is_digest(ref) else self._tags.digest(ref))
        if not path.is_dir():
            raise NotFoundError(f"artifact {ref!r}: not in the store")
        return path

    def tag(self, name: str, digest: str, expected: Expected | None = None) -> None:
        """Points a tag at an artifact, atomically; errors as the interface says."""
        check_digest(digest, f"tag {name!r}")
        self._tags.set(name, digest, expected, lambda: self.find(digest))

    def untag(self, name: str, expected: Expected | None = None) -> bool:
        """Removes a tag; False when there is none."""
        return self._tags.remove(name, expected)

    def tags(self) -> dict[str, str]:
        """Digest of every tag, by name."""
        return self._tags.all()

    def digests(self) -> tuple[str, ...]:
        """Digests of all artifacts, sorted, nothing of them read."""
        if not self._artifacts.is_dir():
            return ()
        return tuple(sorted(path.name for path in self._artifacts.iterdir() if is_digest(path.name)))

    def list(self, kind: str | None = None) -> list[Artifact]:
        """All artifacts, or those of one kind, by digest; errors as the interface says."""
        found = [self.find(digest) for digest in self.digests()]
        return [artifact for artifact in found if kind is None or artifact.manifest.kind == kind]

    def refresh(self, digest: str) -> None:
        """As the interface says."""
        with self._tags.held():
            os.utime(self.locate(digest))
        # Whoever put it there may not have got so far, or have been told that it cannot.
        self._flush()

    def collect_garbage(
        self, roots: Callable[[], Iterable[str]], min_age_s: float, *, dry_run: bool = False
    ) -> Sequence[Described]:
        """Deletes what nothing leads to, as the interface says; a damaged manifest ends it before anything is gone."""
        self.uploads.expire()
        there = {artifact.digest: artifact for artifact in self.list()}
        with incoming_folder(self._incoming) as aside:
            # Held: a tag that is being set finds its artifact, or finds it gone, and never loses it afterwards.
            with self._tags.held():
                digests = self.digests()
                there = {digest: there.get(digest) or self.find(digest) for digest in digests}
                kept = reachable(there, [*self.tags().values(), *roots(), *self._young(digests, min_age_s)])
                garbage = [there[digest] for digest in digests if digest not in kept]
                for artifact in () if dry_run else garbage:
                    artifact.path.rename(aside / artifact.digest)
            if garbage and not dry_run:
                # Before their files go: after a power loss an artifact is where it was, whole, or nowhere.
                for folder in (aside, self._artifacts):
                    flush(folder)
        return garbage

    def _flush(self) -> None:
        flush(self._artifacts)
        # Another process may have made the folder and not have got to flushing its name.
        flush(self.root)

    def _young(self, artifacts: Iterable[str], min_age_s: float) -> Iterator[str]:
        now_s = time.time()
        return (digest for digest in artifacts if now_s - (self._artifacts / digest).stat().st_mtime < min_age_s)
