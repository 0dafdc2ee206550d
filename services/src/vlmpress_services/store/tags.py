"""Tags as files: each holds a digest and is replaced atomically, all changes under one lock."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from vlmpress.artifact import ArtifactFaultError, flush, whole_file
from vlmpress_services.errors import ConflictError, NotFoundError
from vlmpress_services.locking import locked
from vlmpress_services.store.interface import Expected
from vlmpress_services.store.names import check_tag, is_digest, is_tag


class LocalTags:
    """The tags of a store on a disk.

    Args:
        folder: Holds one file a tag.
        lock: File whose lock holds all tags still, so that what they lead to can be deleted.
    """

    def __init__(self, folder: Path, lock: Path) -> None:
        self._folder = folder
        self._lock = lock

    @contextmanager
    def held(self) -> Iterator[None]:
        """No tag changes inside the block."""
        with locked(self._lock):
            yield

    def all(self) -> dict[str, str]:
        """Digest of every tag, by name."""
        if not self._folder.is_dir():
            return {}
        # The leading dot of an unfinished file keeps it out.
        names = sorted(path.name for path in self._folder.iterdir() if is_tag(path.name))
        found = {name: self._read(name) for name in names}
        return {name: digest for name, digest in found.items() if digest is not None}

    def digest(self, name: str) -> str:
        """What a tag points at; raises NotFoundError."""
        check_tag(name)
        digest = self._read(name)
        if digest is None:
            raise NotFoundError(f"artifact {name!r}: no such tag in the store")
        return digest

    def set(self, name: str, digest: str, expected: Expected | None, check: Callable[[], object]) -> None:
        """Points a tag at a digest; `check` raises, tags held still, when no artifact has it."""
        check_tag(name)
        with self.held():
            check()
            found = self._replaceable(name, expected)
            if found == digest:
                return
            check_expected(name, found, expected)
            with whole_file(self._folder / name) as file:
                file.write(f"{digest}\n".encode("ascii"))

    def remove(self, name: str, expected: Expected | None) -> bool:
        """Removes a tag; False when there is none."""
        check_tag(name)
        with self.held():
            found = self._replaceable(name, expected)
            if found is None:
                return False
            check_expected(name, found, expected)
            (self._folder / name).unlink()
            flush(self._folder)
            return True

    def _replaceable(self, name: str, expected: Expected | None) -> str | None:
        """What a tag points at; for who does not care, "" stands for a damaged one."""
        try:
            return self._read(name)
        except ArtifactFaultError:
            if expected is not None:
                raise
            return ""

    def _read(self, name: str) -> str | None:
        try:
            digest = (self._folder / name).read_text(encoding="ascii", errors="replace").removesuffix("\n")
        except FileNotFoundError:
            return None
        if not is_digest(digest):
            raise ArtifactFaultError(f"tag {name!r}: expected a digest of 64 hex digits, got {digest[:80]!r}")
        return digest


def check_expected(name: str, found: str | None, expected: Expected | None) -> None:
    """Raises ConflictError when a tag does not point at what a change expects."""
    if expected is not None and found != expected.digest:
        raise ConflictError(
            f"tag {name!r}: expected {expected.digest or 'no such tag'}, got {found or 'none'}",
            metadata={"found": found or ""},
        )
