"""Artifact directories, checked before use.

An artifact is a directory of ordinary files plus `manifest.json`; its digest is the SHA-256 of
that file's bytes, repeated in `manifest.sha256` so that a directory can be checked alone.
"""

import re
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from vlmpress.artifact.digests import digest_bytes, digest_file
from vlmpress.artifact.errors import ArtifactError, ArtifactFaultError
from vlmpress.artifact.manifest import from_json_bytes
from vlmpress.artifact.v1 import artifact_pb2 as pb

# What every file system in use takes as one part of a path.
MAX_NAME_BYTES = 255
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
    try:
        check_files(artifact.manifest)
    except ArtifactFaultError as error:
        raise ArtifactFaultError(f"{path}: {error}") from error
    present = regular_files(path)
    for name in sorted(set(present) - {file.path for file in artifact.manifest.files}):
        raise ArtifactFaultError(f"{path / name}: not listed in the manifest")
    for file in artifact.manifest.files:
        _verify_file(path, file, present)
    return artifact


def check_files(manifest: pb.Manifest) -> None:
    """Checks that a directory can hold the files of a manifest, and nothing outside it is named.

    Raises:
        ArtifactFaultError: A path leads outside, is the manifest's own, stands twice or is also a folder; paths are
            not sorted; a digest is none.
    """
    listed = [file.path for file in manifest.files]
    if listed != sorted(set(listed)):
        raise ArtifactFaultError(f"{MANIFEST}: expected files sorted by path, each once")
    for file in manifest.files:
        if not is_safe(file.path) or file.path in (MANIFEST, DIGEST):
            raise ArtifactFaultError(f"{MANIFEST}: expected a relative path, got {file.path[:80]!r}")
        if not re.fullmatch(r"[0-9a-f]{64}", file.sha256):
            raise ArtifactFaultError(
                f"{MANIFEST}: {file.path}: expected a SHA-256 of 64 hex digits, got {file.sha256[:80]!r}"
            )
    folders = {str(parent) for name in listed for parent in PurePosixPath(name).parents}
    for name in listed:
        if name in folders:
            raise ArtifactFaultError(f"{MANIFEST}: expected {name!r} to be a file or a folder, got both")
    if folders & {MANIFEST, DIGEST}:
        raise ArtifactFaultError(f"{MANIFEST}: expected no folder of the name {MANIFEST} or {DIGEST}")


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


def regular_files(folder: Path) -> list[str]:
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


def is_safe(name: str) -> bool:
    """Whether every system reads the name as the same path inside the directory."""
    path = PurePosixPath(name)
    inside = name not in ("", ".") and not path.is_absolute() and ".." not in path.parts and path.as_posix() == name
    # A byte that is no UTF-8 comes from the file system as half of a surrogate pair.
    sound = not any(letter in "\\\0" or "\ud800" <= letter <= "\udfff" for letter in name)
    return inside and sound and all(len(part.encode()) <= MAX_NAME_BYTES for part in path.parts)
