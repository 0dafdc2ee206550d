"""A full disk, or one that fails, at every call of a commit: an error, old data intact, the next try works."""

import errno
import io
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from vlmpress.artifact import ArtifactError, create
from vlmpress.artifact.v1 import artifact_pb2
from vlmpress_services.errors import ServicesError
from vlmpress_services.store.checksum import crc32c
from vlmpress_services.store.local import LocalStore

PRODUCER = ("test", "0")
CALLS = ("fsync", "mkdir", "rename", "replace", "pwrite", "utime", "write")


class Faults:
    """Fails the n-th call of those that change a disk."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self._left = 0
        self._code = 0
        for name in CALLS:
            monkeypatch.setattr(os, name, self._failing(getattr(os, name)))
        monkeypatch.setattr(io, "open", self._opening(io.open))

    def arm(self, number: int, code: int) -> None:
        """The `number`-th call from now on fails, once; 0: none does."""
        self._left, self._code = number, code

    @property
    def struck(self) -> bool:
        """Whether the armed fault has happened."""
        return self._left <= 0

    def strike(self) -> None:
        """Counts a call."""
        self._left -= 1
        if self._left == 0:
            raise OSError(self._code, os.strerror(self._code))

    def _failing(self, call: Callable[..., Any]) -> Callable[..., Any]:
        def counted(*args: Any, **options: Any) -> Any:
            self.strike()
            return call(*args, **options)

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


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO])
@pytest.mark.parametrize("act", [commit, upload, collect])
def test_every_call_may_fail(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int, act: Callable[[LocalStore, Path], str]
) -> None:
    with create(tmp_path / "made") as draft:
        (draft.path / "a").write_text("a" * 2500)
        (draft.path / "b").write_text("b")
        made = draft.commit(artifact_pb2.Log(source="made"), producer=PRODUCER).path
    faults = Faults(monkeypatch)
    number = 0
    while True:
        number += 1
        store = LocalStore(tmp_path / f"store{number}")
        with store.draft() as draft:
            (draft.path / "old").write_text("old")
            old = draft.commit(artifact_pb2.Log(source="old"), producer=PRODUCER).digest
        store.tag("it", old)
        faults.arm(number, code)
        failed = None
        try:
            act(store, made)
        except (OSError, ArtifactError, ServicesError) as error:
            failed = error
        struck = faults.struck
        faults.arm(0, code)
        assert store.verify(old).digest == old
        for digest in store.digests():
            store.verify(digest)
        assert store.tags()["it"] in store.digests()
        if failed is None and not struck:
            break
        assert store.verify(act(store, made)) == store.resolve("it")
    assert number > 10
    print(f"{act.__name__}, {errno.errorcode[code]}: {number - 1} faults")  # noqa: T201
