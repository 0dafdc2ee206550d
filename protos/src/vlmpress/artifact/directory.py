"""Artifact directories: written whole or not at all, checked before use.

An artifact is a directory of ordinary files plus `manifest.json`; its digest is the SHA-256 of
that file's bytes, repeated in `manifest.sha256` so that a directory can be checked alone.
"""

import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from vlmpress.artifact.digests import digest_bytes, digest_file
from vlmpress.artifact.errors import ArtifactError, ArtifactFaultError
from vlmpress.artifact.manifest import FORMAT_VERSION, Spec, from_json_bytes, kind_of, to_json_bytes
from vlmpress.artifact.v1 import artifact_pb2 as pb

MANIFEST = "manifest.json"
DIGEST = "manifest.sha256"


@dataclass(frozen=True, slots=True)
class Artifact:
    """An artifact directory, its manifest and its digest (64 hex digits)."""

    path: Path
    manifest: pb.Manifest
    digest: str

    @property
    def size_bytes(self) -> int:
        """Sum of the sizes of its files, the manifest not counted."""
        return sum(file.size_bytes for file in self.manifest.files)


class Draft:
    """A directory being filled; `commit` makes it an artifact."""

    def __init__(self, path: Path, target: Path) -> None:
        self.path = path
        self._target = target
        self.artifact: Artifact | None = None

    def commit(
        self,
        spec: Spec,
        *,
        producer: tuple[str, str],
        parents: Sequence[tuple[str, str]] = (),
        metrics: Mapping[str, float] | None = None,
    ) -> Artifact:
        """Writes the manifest, flushes every file to disk and renames the directory into place.

        Args:
            spec: One of the specification messages of `vlmpress.artifact.v1.Manifest`.
            producer: Distribution name and version.
            parents: (role, digest) of what this was made from, in order.
            metrics: Figures measured while making it; names carry their unit.

        Raises:
            ArtifactError: The target exists already.
        """
        kind = kind_of(spec)
        manifest = pb.Manifest(
            format_version=FORMAT_VERSION,
            kind=kind,
            files=[_describe(self.path, name) for name in _regular_files(self.path)],
            parents=[pb.Parent(role=role, digest=digest) for role, digest in parents],
            producer=pb.Producer(name=producer[0], version=producer[1]),
            metrics=metrics or {},
        )
        getattr(manifest, kind).SetInParent()
        getattr(manifest, kind).CopyFrom(spec)
        data = to_json_bytes(manifest)
        digest = digest_bytes(data)
        (self.path / MANIFEST).write_bytes(data)
        (self.path / DIGEST).write_text(f"{digest}\n", encoding="ascii")
        _flush_tree(self.path)
        try:
            self.path.rename(self._target)
        except OSError as error:
            raise ArtifactError(
                f"{self._target}: expected a path that does not exist yet, got {error.strerror}"
            ) from error
        _flush(self._target.parent)
        self.artifact = Artifact(self._target, manifest, digest)
        return self.artifact


@contextmanager
def create(target: Path) -> Iterator[Draft]:
    """A draft beside `target`; what is not committed when the block ends is removed.

    Raises:
        ArtifactError: `target` exists already.
    """
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise ArtifactError(f"{target}: expected a path that does not exist yet")
    target.parent.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix=f".{target.name}.", suffix=".tmp", dir=target.parent))
    folder.chmod(0o755)
    draft = Draft(folder, target)
    try:
        yield draft
    finally:
        if draft.artifact is None:
            shutil.rmtree(folder, ignore_errors=True)


def read(path: Path) -> Artifact:
    """Reads the manifest and checks it against manifest.sha256, the files' contents unchecked.

    Raises:
        ArtifactError: No artifact is there.
        ArtifactFaultError: The manifest is not canonical or not the one that was committed.
    """
    try:
        data = (path / MANIFEST).read_bytes()
        stated = (path / DIGEST).read_bytes()
    except OSError as error:
        raise ArtifactError(
            f"{path}: expected an artifact directory, got {error.strerror}: {error.filename}"
        ) from error
    digest = digest_bytes(data)
    if stated != f"{digest}\n".encode():
        raise ArtifactFaultError(f"{path / DIGEST}: expected {digest} and a newline, got {stated[:80]!r}")
    try:
        manifest = from_json_bytes(data)
    except ArtifactFaultError as error:
        raise ArtifactFaultError(f"{path}: {error}") from error
    return Artifact(path, manifest, digest)


def verify(path: Path) -> Artifact:
    """Checks every byte: the manifest, each file's size and SHA-256, and that nothing else is there.

    Raises:
        ArtifactError: No artifact is there.
        ArtifactFaultError: Names the first file that is not as the manifest says.
    """
    artifact = read(path)
    listed = [file.path for file in artifact.manifest.files]
    if listed != sorted(set(listed)):
        raise ArtifactFaultError(f"{path / MANIFEST}: expected files sorted by path, each once")
    for name in listed:
        if not _is_safe(name):
            raise ArtifactFaultError(f"{path / MANIFEST}: expected a relative path, got {name!r}")
    present = _regular_files(path)
    for name in sorted(set(present) - set(listed)):
        raise ArtifactFaultError(f"{path / name}: not listed in the manifest")
    for file in artifact.manifest.files:
        _verify_file(path, file, present)
    return artifact


def _verify_file(folder: Path, file: pb.File, present: list[str]) -> None:
    path = folder / file.path
    if file.path not in present:
        raise ArtifactFaultError(f"{path}: expected a file of {file.size_bytes} bytes, got none")
    size = path.stat().st_size
    if size != file.size_bytes:
        raise ArtifactFaultError(f"{path}: expected {file.size_bytes} bytes, got {size}")
    digest = digest_file(path)
    if digest != file.sha256:
        raise ArtifactFaultError(f"{path}: expected SHA-256 {file.sha256}, got {digest}")


def _is_safe(name: str) -> bool:
    path = PurePosixPath(name)
    return (
        bool(name)
        and not path.is_absolute()
        and ".." not in path.parts
        and path.as_posix() == name
        and "\\" not in name
    )


def _regular_files(folder: Path) -> list[str]:
    """Relative paths of all files but the manifest and its digest, sorted; refuses links, devices and empty folders."""
    names = []
    for path in folder.rglob("*"):
        name = path.relative_to(folder).as_posix()
        if path.is_symlink() or not (path.is_file() or path.is_dir()):
            raise ArtifactFaultError(f"{path}: expected a regular file")
        if path.is_dir() and not any(path.iterdir()):
            raise ArtifactFaultError(f"{path}: expected no empty folder")
        if path.is_file() and name not in (MANIFEST, DIGEST):
            names.append(name)
    return sorted(names)


def _describe(folder: Path, name: str) -> pb.File:
    path = folder / name
    return pb.File(path=name, sha256=digest_file(path), size_bytes=path.stat().st_size)


def _flush_tree(folder: Path) -> None:
    for path in folder.rglob("*"):
        _flush(path)
    _flush(folder)


def _flush(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
