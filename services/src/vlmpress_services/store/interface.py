"""What every artifact store does, on a disk or in a bucket."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from vlmpress.artifact import Artifact, Draft, Spec, digest_bytes, verify
from vlmpress.artifact.v1 import artifact_pb2
from vlmpress_services.errors import NotFoundError
from vlmpress_services.store.incoming import copied, incoming_folder
from vlmpress_services.store.names import check_digest, is_digest
from vlmpress_services.store.uploads import FileStatus, Uploads


class Described(Protocol):
    """An artifact as a store's listing has it; an `Artifact` is one."""

    @property
    def manifest(self) -> artifact_pb2.Manifest:
        """Its manifest."""

    @property
    def digest(self) -> str:
        """SHA-256 of its manifest.json, 64 hex digits."""

    @property
    def size_bytes(self) -> int:
        """Sum of the sizes of its files."""


class StoreDraft(Draft):
    """A draft whose commit lands in a store under its digest."""

    def __init__(self, folder: Path, publish: Callable[[Artifact], Artifact]) -> None:
        path = folder / "draft"
        path.mkdir()
        super().__init__(path, folder / "artifact")
        self._publish = publish

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
        self.artifact = self._publish(artifact)
        return self.artifact


@dataclass(frozen=True, slots=True)
class Expected:
    """What a tag must point at for a change to be made; None: there must be no such tag."""

    digest: str | None


class ArtifactStore(ABC):
    """Artifacts by digest and tag.

    Attributes:
        root: A folder of this machine: the store itself, or what a remote store keeps here.
        uploads: What clients are writing.
    """

    def __init__(self, root: Path) -> None:
        self.root = Path(root)
        self.uploads = Uploads(self.root / "uploads", self.publish)
        self._incoming = self.root / "incoming"

    @contextmanager
    def draft(self) -> Iterator[StoreDraft]:
        """A directory to fill at `draft.path`; only `draft.commit` makes it visible."""
        with incoming_folder(self._incoming) as folder:
            yield StoreDraft(folder, self.publish)

    def add(self, directory: Path) -> Artifact:
        """Copies an artifact directory in, checking every byte.

        Raises:
            ArtifactError: No artifact is there, or a byte is not as its manifest says.
        """
        with copied(directory, self._incoming) as artifact:
            return self.publish(artifact)

    @abstractmethod
    def publish(self, artifact: Artifact) -> Artifact:
        """Takes a whole artifact directory of `root` in; the first of equal ones stays."""

    @abstractmethod
    def find(self, ref: str) -> Described:
        """The artifact behind a digest (64 hex digits) or a tag, its manifest checked and nothing else read.

        Raises:
            InvalidRequestError: `ref` is neither.
            NotFoundError: There is none.
            ArtifactFaultError: Its manifest is not the one that was committed.
        """

    @abstractmethod
    def resolve(self, ref: str) -> Artifact:
        """As `find`, as a directory of this machine."""

    @abstractmethod
    def read(self, digest: str, path: str, offset: int, size: int) -> bytes:
        """`size` bytes of a file that the manifest lists; raises ArtifactFaultError when they are not there."""

    @abstractmethod
    def digests(self) -> tuple[str, ...]:
        """Digests of all artifacts, sorted, nothing of them read."""

    @abstractmethod
    def tags(self) -> dict[str, str]:
        """Digest of every tag, by name."""

    @abstractmethod
    def tag(self, name: str, digest: str, expected: Expected | None = None) -> None:
        """Points a tag at an artifact, atomically; one that points there already is left as it is.

        Raises:
            InvalidRequestError: `name` is no tag name, or `digest` none.
            NotFoundError: No artifact has this digest.
            ConflictError: `expected` is given, and the tag points elsewhere.
        """

    @abstractmethod
    def untag(self, name: str, expected: Expected | None = None) -> bool:
        """Removes a tag; False when there is none. Errors as `tag`."""

    @abstractmethod
    def refresh(self, digest: str) -> None:
        """Makes an artifact as young as a new one, for `collect_garbage`, and as sure to outlive a power loss.

        Raises:
            NotFoundError: There is no such artifact.
        """

    @abstractmethod
    def collect_garbage(
        self, roots: Callable[[], Iterable[str]], min_age_s: float, *, dry_run: bool = False
    ) -> Sequence[Described]:
        """Deletes artifacts that neither a tag nor a root leads to, through parents too, unless they are young.

        Args:
            roots: Gives digests (and anything else, which is ignored) while no tag can change.
            min_age_s: Seconds since an artifact was committed, or refreshed; younger ones stay.
            dry_run: Only says what would go.
        """

    def verify(self, ref: str) -> Artifact:
        """Resolves and checks every byte; errors as `resolve` and `vlmpress.artifact.verify`."""
        return verify(self.resolve(ref).path)

    def start_write(self, manifest_json: bytes) -> tuple[str, list[FileStatus] | None]:
        """Begins a write, or finds the one that has begun: its digest and files; None: the artifact is there already.

        Raises:
            ArtifactFaultError: The manifest is not canonical, or names files that no directory can hold.
            InvalidRequestError: Its files are larger together than a store takes.
        """
        digest = digest_bytes(manifest_json)
        while not self.has(digest):
            self.uploads.expire()
            self.uploads.start(manifest_json)
            # Else another client has just committed it, or given it up.
            with suppress(NotFoundError):
                return digest, self.uploads.status(digest)
        self.refresh(digest)
        return digest, None

    def commit_write(self, digest: str) -> Described:
        """Makes a whole write an artifact, which outlives a power loss; done already, it is done.

        Raises:
            NotFoundError: No write has begun.
            IncompleteWriteError: A file is not whole.
        """
        check_digest(digest)
        if not self.has(digest):
            try:
                return self.uploads.commit(digest)
            except NotFoundError:
                if not self.has(digest):  # else another client committed it meanwhile
                    raise
        self.refresh(digest)
        self.uploads.abandon(digest)
        return self.find(digest)

    def has(self, digest: str) -> bool:
        """Whether the store holds the artifact."""
        try:
            self.find(digest)
        except NotFoundError:
            return False
        return True

    def list(self, kind: str | None = None) -> Sequence[Described]:
        """All artifacts, or those of one kind, by digest.

        Raises:
            ArtifactFaultError: Names the first one whose manifest is damaged.
        """
        found = [self.find(digest) for digest in self.digests()]
        return [artifact for artifact in found if kind is None or artifact.manifest.kind == kind]

    def page(self, kind: str | None, size: int, after: str) -> tuple[Sequence[Described], str]:
        """At most `size` artifacts whose digests come after one, and the digest to go on after; "" at the end."""
        rows: list[Described] = []
        for digest in self.digests():
            if digest <= after:
                continue
            if len(rows) == size:
                return rows, rows[-1].digest
            try:
                artifact = self.find(digest)
            except NotFoundError:
                continue  # collected meanwhile
            if kind is None or artifact.manifest.kind == kind:
                rows.append(artifact)
        return rows, ""


def reachable(manifests: Mapping[str, Described], starts: Iterable[str]) -> set[str]:
    """Digests of the artifacts that `starts` lead to through parents, those of `starts` included."""
    found: set[str] = set()
    waiting = [digest for digest in starts if is_digest(digest)]
    while waiting:
        digest = waiting.pop()
        if digest in manifests and digest not in found:
            found.add(digest)
            waiting += [parent.digest for parent in manifests[digest].manifest.parents]
    return found
