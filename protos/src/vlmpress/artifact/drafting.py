"""Writes artifact directories: whole or not at all."""

import errno
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from vlmpress.artifact.digests import digest_bytes, digest_file
from vlmpress.artifact.directory import DIGEST, MANIFEST, Artifact, is_safe, regular_files
from vlmpress.artifact.errors import ArtifactError
from vlmpress.artifact.manifest import FORMAT_VERSION, Spec, kind_of, to_json_bytes
from vlmpress.artifact.v1 import artifact_pb2 as pb
from vlmpress.artifact.writing import flush, flush_tree, make_folder

TAKEN = (errno.EEXIST, errno.ENOTEMPTY, errno.ENOTDIR)


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
            ArtifactError: The target exists already, the draft is committed already, or a file has a name
                that an artifact cannot hold.
        """
        if self.artifact is not None:
            raise ArtifactError(f"{self._target}: expected one commit, got a second")
        kind = kind_of(spec)
        manifest = pb.Manifest(
            format_version=FORMAT_VERSION,
            kind=kind,
            files=[_describe(self.path, name) for name in _draft_files(self.path)],
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
        flush_tree(self.path)
        try:
            self.path.rename(self._target)
        except OSError as error:
            if error.errno not in TAKEN:
                raise
            raise ArtifactError(
                f"{self._target}: expected a path that does not exist yet, got {error.strerror}"
            ) from error
        self.artifact = Artifact(self._target, manifest, digest)
        flush(self._target.parent)
        return self.artifact


@contextmanager
def create(target: Path) -> Iterator[Draft]:
    """A draft beside `target`; what is not committed when the block ends is removed.

    Raises:
        ArtifactError: `target` exists already.
    """
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise ArtifactError(f"{target}: expected a path that does not exist yet")
    make_folder(target.parent)
    folder = Path(tempfile.mkdtemp(prefix=f".{target.name}.", suffix=".tmp", dir=target.parent))
    folder.chmod(0o755)
    draft = Draft(folder, target)
    try:
        yield draft
    finally:
        if draft.artifact is None:
            shutil.rmtree(folder, ignore_errors=True)


def _draft_files(folder: Path) -> list[str]:
    for name in (MANIFEST, DIGEST):
        if (folder / name).exists():
            raise ArtifactError(f"{folder / name}: expected no such file in a draft, the commit writes it")
    names = regular_files(folder)
    for name in names:
        if not is_safe(name):
            raise ArtifactError(f"{folder}: expected names in UTF-8 without a backslash, got {name!r}")
    return names


def _describe(folder: Path, name: str) -> pb.File:
    path = folder / name
    return pb.File(path=name, sha256=digest_file(path), size_bytes=path.stat().st_size)
