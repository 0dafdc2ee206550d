"""A directory as artifact store.

artifacts/<digest>/   whole artifacts, never changed
tags/<name>           a file holding a digest, replaced atomically
incoming/<random>/    drafts being filled; nobody looks here
"""

import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from vlmpress.artifact import (
    Artifact,
    ArtifactError,
    ArtifactFaultError,
    Draft,
    Spec,
    flush,
    flush_tree,
    read,
    verify,
    whole_file,
)
from vlmpress_services.errors import InvalidRequestError, NotFoundError
from vlmpress_services.store.incoming import incoming_folder

_DIGEST = re.compile(r"[0-9a-f]{64}")
_TAG = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")


class StoreDraft(Draft):
    """A draft whose commit lands in the store under its digest."""

    def __init__(self, folder: Path, store: "LocalStore") -> None:
        path = folder / "draft"
        path.mkdir()
        super().__init__(path, folder / "artifact")
        self._store = store

    def commit(
        self,
        spec: Spec,
        *,
        producer: tuple[str, str],
        parents: Sequence[tuple[str, str]] = (),
        metrics: Mapping[str, float] | None = None,
    ) -> Artifact:
        """As `Draft.commit`; content the store has already is kept as it is, and returned."""
        artifact = super().commit(spec, producer=producer, parents=parents, metrics=metrics)
        self.artifact = self._store.publish(artifact)
        return self.artifact


class LocalStore:
    """Artifacts by digest and tag under one directory, made on the first write."""

    def __init__(self, root: Path) -> None:
        self.root = Path(root)
        self._artifacts = self.root / "artifacts"
        self._tags = self.root / "tags"
        self._incoming = self.root / "incoming"

    @contextmanager
    def draft(self) -> Iterator[StoreDraft]:
        """A directory to fill at `draft.path`; only `draft.commit` makes it visible."""
        with incoming_folder(self._incoming) as folder:
            yield StoreDraft(folder, self)

    def add(self, directory: Path) -> Artifact:
        """Copies an artifact directory in, checking every byte.

        Raises:
            ArtifactError: No artifact is there, or a byte is not as its manifest says.
        """
        with incoming_folder(self._incoming) as folder:
            copy = folder / "artifact"
            try:
                shutil.copytree(directory, copy, symlinks=True)
            except (OSError, shutil.Error) as error:
                raise ArtifactError(f"{directory}: expected an artifact directory, got {error}") from error
            try:
                artifact = verify(copy)
            except ArtifactError as error:
                message = str(error).replace(str(copy), str(directory))
                raise type(error)(message) from error
            flush_tree(copy)
            return self.publish(artifact)

    def publish(self, artifact: Artifact) -> Artifact:
        """Renames a whole artifact directory into the store; the first of equal ones stays."""
        target = self._artifacts / artifact.digest
        self._artifacts.mkdir(parents=True, exist_ok=True)
        try:
            artifact.path.rename(target)
        except OSError:
            if not target.is_dir():
                raise
        flush(self._artifacts)
        return Artifact(target, artifact.manifest, artifact.digest)

    def resolve(self, ref: str) -> Artifact:
        """The artifact behind a digest (64 hex digits) or a tag, its manifest checked.

        Raises:
            InvalidRequestError: `ref` is neither.
            NotFoundError: There is none.
            ArtifactFaultError: Its manifest is not the one that was committed.
        """
        path = self.locate(ref)
        artifact = read(path)
        if artifact.digest != path.name:
            raise ArtifactFaultError(f"{path}: expected a manifest of that digest, got {artifact.digest}")
        return artifact

    def locate(self, ref: str) -> Path:
        """The folder behind a digest or tag, nothing in it read; errors as `resolve`."""
        digest = ref if _DIGEST.fullmatch(ref) else self._tag_digest(ref)
        path = self._artifacts / digest
        if not path.is_dir():
            raise NotFoundError(f"artifact {ref!r}: not in the store")
        return path

    def verify(self, ref: str) -> Artifact:
        """Resolves and checks every byte; errors as `resolve` and `vlmpress.artifact.verify`."""
        return verify(self.resolve(ref).path)

    def tag(self, name: str, digest: str) -> None:
        """Points a tag at an artifact, atomically.

        Raises:
            InvalidRequestError: `name` is no tag name.
            NotFoundError: No artifact has this digest.
        """
        _check_tag(name)
        if not _DIGEST.fullmatch(digest):
            raise InvalidRequestError(f"tag {name!r}: expected a digest of 64 hex digits, got {digest!r}")
        self.resolve(digest)
        # The leading dot of an unfinished file keeps it out of every listing.
        with whole_file(self._tags / name) as file:
            file.write(f"{digest}\n".encode("ascii"))

    def tags(self) -> dict[str, str]:
        """Digest of every tag, by name."""
        if not self._tags.is_dir():
            return {}
        names = sorted(path.name for path in self._tags.iterdir() if _TAG.fullmatch(path.name))
        return {name: self._tag_digest(name) for name in names}

    def digests(self) -> tuple[str, ...]:
        """Digests of all artifacts, sorted, nothing of them read."""
        if not self._artifacts.is_dir():
            return ()
        return tuple(sorted(path.name for path in self._artifacts.iterdir() if _DIGEST.fullmatch(path.name)))

    def list(self, kind: str | None = None) -> list[Artifact]:
        """All artifacts, or those of one kind, by digest.

        Raises:
            ArtifactFaultError: Names the first one whose manifest is damaged.
        """
        found = [self.resolve(digest) for digest in self.digests()]
        return [artifact for artifact in found if kind is None or artifact.manifest.kind == kind]

    def _tag_digest(self, name: str) -> str:
        _check_tag(name)
        path = self._tags / name
        try:
            digest = path.read_text(encoding="ascii").removesuffix("\n")
        except FileNotFoundError:
            raise NotFoundError(f"artifact {name!r}: no such tag in the store") from None
        if not _DIGEST.fullmatch(digest):
            raise ArtifactFaultError(f"tag {name!r}: expected a digest of 64 hex digits, got {digest[:80]!r}")
        return digest


def _check_tag(name: str) -> None:
    if not _TAG.fullmatch(name) or _DIGEST.fullmatch(name):
        raise InvalidRequestError(
            f"expected a digest of 64 hex digits or a tag of at most 128 letters, digits, '.', '_', '-', got {name!r}"
        )
