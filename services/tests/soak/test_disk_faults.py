"""A full disk, or one that fails, at every call that changes it: an error, old data intact, the next try works."""

import errno
import io
import itertools
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from vlmpress.artifact import ArtifactError, create
from vlmpress.artifact.v1 import artifact_pb2
from vlmpress_services.errors import ServicesError
from vlmpress_services.store.checksum import crc32c
from vlmpress_services.store.local import LocalStore
from vlmpress_services.store.uploads import FileStatus

PRODUCER = ("test", "0")
CALLS = ("chmod", "fsync", "ftruncate", "mkdir", "pwrite", "rename", "replace", "rmdir", "unlink", "utime", "write")


def is_harmless(name: str, args: Any, options: Any) -> bool:
    """Whether nobody need hear of a call's failure.

    It makes a folder that is there already, or is one of `rmtree`'s, which alone give a `dir_fd`, on what nobody reads.
    """
    return (name == "mkdir" and Path(args[0]).is_dir()) or (name in ("rmdir", "unlink") and "dir_fd" in options)


class Faults:
    """Fails the n-th call of those that change a disk, and all after it where it is to last.

    Attributes:
        num_struck: Calls that have failed since it was armed.
        num_harmful: Those among them whose failure has to be an error.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.arm(0)
        for name in CALLS:
            monkeypatch.setattr(os, name, self._failing(name, getattr(os, name)))
        monkeypatch.setattr(os, "open", self._creating(os.open))
        monkeypatch.setattr(io, "open", self._opening(open))
        monkeypatch.setattr(shutil, "open", self._opening(open), raising=False)

    def arm(self, number: int, code: int = 0, lasts: bool = False) -> None:
        """The `number`-th call from now on fails; 0: none does."""
        self._left, self._code, self._lasts = number, code, lasts and number > 0
        self.num_struck = self.num_harmful = 0

    def strike(self, harmless: bool = False) -> None:
        """Counts a call."""
        self._left -= 1
        if self._left == 0 or (self._lasts and self._left < 0):
            self.num_struck += 1
            self.num_harmful += not harmless
            raise OSError(self._code, os.strerror(self._code))

    def _failing(self, name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def counted(*args: Any, **options: Any) -> Any:
            self.strike(is_harmless(name, args, options))
            return call(*args, **options)

        return counted

    def _creating(self, call: Callable[..., Any]) -> Callable[..., Any]:
        def counted(path: Any, flags: int, *args: Any, **options: Any) -> Any:
            if flags & os.O_CREAT:
                self.strike()
            return call(path, flags, *args, **options)

        return counted

    def _opening(self, call: Callable[..., Any]) -> Callable[..., Any]:
        def counted(path: Any, mode: str = "r", *args: Any, **options: Any) -> Any:
            if not set(mode) & set("wxa+"):
                return call(path, mode, *args, **options)
            self.strike()
            return FaultyFile(call(path, mode, *args, **options), self)

        return counted


class FaultyFile:
    """A file whose writes count."""

    def __init__(self, file: Any, faults: Faults) -> None:
        self._file = file
        self._faults = faults

    def write(self, data: Any) -> Any:
        self._faults.strike()
        return self._file.write(data)

    def __enter__(self) -> "FaultyFile":
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)


def commit(store: LocalStore, made: Path) -> str:
    """A draft and a tag."""
    with store.draft() as draft:
        (draft.path / "sub").mkdir()
        (draft.path / "sub" / "new").write_text("new")
        digest = draft.commit(artifact_pb2.Log(source="new"), producer=PRODUCER).digest
    store.tag("it", digest)
    return digest


def upload(store: LocalStore, made: Path) -> str:
    """A write over the network, as its service makes it, and a tag."""
    digest, files = store.start_write((made / "manifest.json").read_bytes())
    for file in files or ():
        data = (made / file.path).read_bytes()
        for start in range(file.persisted_size, len(data), 1000):
            with store.uploads.open(digest, file.path) as part:
                part.write(start, data[start : start + 1000], crc32c(data[start : start + 1000]))
    store.commit_write(digest)
    store.tag("it", digest)
    return digest


def collect(store: LocalStore, made: Path) -> str:
    """Garbage collection that has something to delete."""
    if "it" in store.tags():
        kept = store.tags()["it"]
        store.add(made)
        store.collect_garbage(list, 0)
        return kept
    raise AssertionError


@pytest.mark.parametrize("lasts", [False, True])
@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO])
@pytest.mark.parametrize("act", [commit, upload, collect])
def test_every_call_may_fail(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lasts: bool, code: int, act: Callable[[LocalStore, Path], str]
) -> None:
    with create(tmp_path / "made") as draft:
        (draft.path / "a").write_text("a" * 2500)
        (draft.path / "b").write_text("b")
        made = draft.commit(artifact_pb2.Log(source="made"), producer=PRODUCER).path
    faults = Faults(monkeypatch)
    num_harmless = 0
    for number in itertools.count(1):
        store = LocalStore(tmp_path / f"store{number}")
        with store.draft() as draft:
            (draft.path / "old").write_text("old")
            old = draft.commit(artifact_pb2.Log(source="old"), producer=PRODUCER).digest
        store.tag("it", old)
        faults.arm(number, code, lasts)
        failed = None
        try:
            act(store, made)
        except (OSError, ArtifactError, ServicesError) as error:
            failed = error
        num_struck, num_harmful = faults.num_struck, faults.num_harmful
        faults.arm(0)
        assert (failed is not None) == (num_harmful > 0), f"call {number}: {failed}"
        assert store.verify(old).digest == old
        for digest in store.digests():
            store.verify(digest)
        tagged = store.tags()["it"]
        if num_struck == 0:
            break
        num_harmless += num_harmful == 0
        new = act(store, made)
        assert tagged in (old, new)
        assert store.verify(new) == store.resolve("it")
    assert number > 20
    faulted = f"{number - 1} faults, {num_harmless} of them harmless"
    print(f"{act.__name__}, {errno.errorcode[code]}{' for long' if lasts else ''}: {faulted}")  # noqa: T201


def test_a_file_that_the_disk_would_not_take_is_sent_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with create(tmp_path / "made") as draft:
        (draft.path / "a").write_text("a")
        made = draft.commit(artifact_pb2.Log(source="made"), producer=PRODUCER)
    store = LocalStore(tmp_path / "store")
    store.start_write((made.path / "manifest.json").read_bytes())
    faults = Faults(monkeypatch)
    with store.uploads.open(made.digest, "a") as part:
        faults.arm(2, errno.EIO)  # pwrite, fsync
        with pytest.raises(OSError, match=os.strerror(errno.EIO)):
            part.write(0, b"a", crc32c(b"a"))
    # The next fsync may say that all is well, and it is not.
    assert store.uploads.status(made.digest) == [FileStatus("a", 0)]
