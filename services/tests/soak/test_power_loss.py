"""Every state that a power loss may leave of the store's protocols: what is visible is whole, what was said is there.

The calls that a protocol really makes are recorded on a real folder, then played to a model of a disk that promises no
more than POSIX: a file's bytes are there once the file is synced, a name once its folder is; a rename is one change,
there once the folder it leads to is synced. After each call the power may go, and any part of what was not synced may
be there or not.
"""

import itertools
import os
import random
import shutil
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from vlmpress.artifact import ArtifactFaultError, create, make_folder, to_json_bytes
from vlmpress.artifact.v1 import artifact_pb2
from vlmpress_services.store.checksum import crc32c
from vlmpress_services.store.local import LocalStore

PRODUCER = ("test", "0")
CALLS = ("fsync", "mkdir", "rename", "replace", "unlink", "rmdir", "pwrite", "ftruncate")
# Changes to names that may each be there or not; beyond it single ones and random ones are tried.
MAX_ALL_SUBSETS = 8
Names = dict[tuple[int, str], int]


@dataclass
class Trace:
    """What a protocol did: changes and syncs in order, and what it promised when."""

    events: list[tuple[Any, ...]] = field(default_factory=list)
    promises: list[tuple[int, str | None, str | None]] = field(default_factory=list)

    def promise(self, digest: str | None, tag: str | None = None) -> None:
        """From here on an artifact is there, and a tag points at it; None: there is no such tag."""
        self.promises.append((len(self.events), digest, tag))


class Recorder:
    """Finds what changed in a folder before and after each call that may have changed it."""

    def __init__(self, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self._root = root
        self._names: Names = {}
        self._data: dict[int, bytes] = {}
        self._busy = False
        # A file system gives the number of a deleted file to a new one.
        self._numbers: dict[int, int] = {}
        self._fresh = itertools.count()
        self.trace = Trace()
        self.root = self._number(root.stat().st_ino)
        for name in CALLS:
            monkeypatch.setattr(os, name, self._recorded(name, getattr(os, name)))

    def look(self) -> None:
        """Records what changed since the last look."""
        names: Names = {}
        data: dict[int, bytes] = {}
        kinds: dict[int, bool] = {}
        there = {self._root.stat().st_ino, *(path.stat().st_ino for path in self._root.rglob("*"))}
        self._numbers = {inode: number for inode, number in self._numbers.items() if inode in there}
        for path in self._root.rglob("*"):
            number = self._number(path.stat().st_ino)
            names[self._number(path.parent.stat().st_ino), path.name] = number
            kinds[number] = path.is_dir()
            if path.is_file():
                data[number] = path.read_bytes()
        gone = {key: number for key, number in self._names.items() if names.get(key) != number}
        for key, number in names.items():
            if self._names.get(key) == number:
                continue
            old = next((before for before, same in gone.items() if same == number), None)
            if old is not None:
                gone.pop(old)
            self.trace.events.append(("name", old, key, number, kinds[number]))
        for key in gone:
            if key not in names:
                self.trace.events.append(("name", key, None, None, False))
        for number, content in data.items():
            if self._data.get(number) != content:
                self.trace.events.append(("data", number, content))
        self._names, self._data = names, data

    def _number(self, inode: int) -> int:
        if inode not in self._numbers:
            self._numbers[inode] = next(self._fresh)
        return self._numbers[inode]

    def _recorded(self, name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def recorded(*args: Any, **options: Any) -> Any:
            if self._busy:
                return call(*args, **options)
            self._busy = True
            try:
                self.look()
                result = call(*args, **options)
                if name == "fsync":
                    self.trace.events.append(("sync", self._numbers.get(os.fstat(args[0]).st_ino)))
                self.look()
                return result
            finally:
                self._busy = False

        return recorded


class Disk:
    """What is on the disk for sure, and what may be."""

    def __init__(self, root: int) -> None:
        self.root = root
        self._names: Names = {}
        self._data: dict[int, bytes] = {}
        self._folders: set[int] = {root}
        self._pending: list[tuple[tuple[int, str] | None, tuple[int, str] | None, int]] = []
        self._unsynced: dict[int, bytes] = {}

    def play(self, event: tuple[Any, ...]) -> None:
        """One call more."""
        if event[0] == "name":
            _, old, new, number, is_folder = event
            self._pending.append((old, new, number))
            if is_folder:
                self._folders.add(number)
        elif event[0] == "data":
            self._unsynced[event[1]] = event[2]
        elif event[1] in self._folders:
            settled = [change for change in self._pending if (change[1] or change[0])[0] == event[1]]
            self._names = self._after(settled)
            self._pending = [change for change in self._pending if change not in settled]
        elif event[1] in self._unsynced:
            self._data[event[1]] = self._unsynced.pop(event[1])

    def states(self, chance: random.Random) -> Iterator[tuple[Names, dict[int, bytes]]]:
        """What may be there after a power loss now."""
        size = len(self._pending)
        if size <= MAX_ALL_SUBSETS:
            choices = list(itertools.product((False, True), repeat=size))
        else:
            choices = [tuple(place < until for place in range(size)) for until in range(size + 1)]
            choices += [tuple(place != out for place in range(size)) for out in range(size)]
            choices += [tuple(chance.random() < 0.5 for _ in range(size)) for _ in range(64)]
        for choice in choices:
            names = self._after([change for change, there in zip(self._pending, choice, strict=True) if there])
            for damage in (
                lambda _: b"",
                lambda data: data,
                lambda data: data[: len(data) // 2],
                lambda data: bytes(len(data)),
            ):
                data = {number: self._data.get(number, damage(content)) for number, content in self._unsynced.items()}
                yield names, {**self._data, **data}
                if not self._unsynced:
                    break

    def write(self, names: Names, data: dict[int, bytes], target: Path) -> None:
        """Makes a state a real folder."""

        def fill(number: int, folder: Path) -> None:
            folder.mkdir()
            for (place, name), inside in names.items():
                if place == number and inside in self._folders:
                    fill(inside, folder / name)
                elif place == number:
                    (folder / name).write_bytes(data.get(inside, b""))

        fill(self.root, target)

    def _after(self, changes: list[Any]) -> Names:
        names = dict(self._names)
        for old, new, number in changes:
            if old is not None:
                names.pop(old, None)
            if new is not None:
                names[new] = number
        return names


def commit(store: LocalStore, text: str) -> str:
    with store.draft() as draft:
        (draft.path / "sub").mkdir()
        (draft.path / "sub" / "a").write_text(text)
        return draft.commit(artifact_pb2.Log(source=text), producer=PRODUCER).digest


def drafts(store: LocalStore, scratch: Path, trace: Trace) -> None:
    """Two artifacts, a tag that moves from one to the other, and one that goes."""
    for text in ("first", "second"):
        digest = commit(store, text)
        trace.promise(digest)
        store.tag("it", digest)
        trace.promise(digest, "it")
    store.tag("other", digest)
    trace.promise(digest, "other")
    store.untag("other")
    trace.promise(None, "other")


def beside(store: LocalStore, scratch: Path, trace: Trace) -> None:
    """Another process makes the folders, and later an artifact of them, and never gets to flushing their names."""
    make_folder(store.root)
    for name in ("artifacts", "incoming"):
        (store.root / name).mkdir()
    trace.promise(commit(store, "a"))
    with create(store.root / "made") as draft:
        made = draft.commit(artifact_pb2.Log(source="made"), producer=PRODUCER)
    made.path.rename(store.root / "artifacts" / made.digest)
    store.start_write(to_json_bytes(made.manifest))
    trace.promise(made.digest)


def upload(store: LocalStore, scratch: Path, trace: Trace) -> None:
    """A write over the network."""
    with create(scratch / "made") as draft:
        (draft.path / "sub").mkdir()
        (draft.path / "sub" / "a").write_text("a" * 30)
        (draft.path / "empty").write_text("")
        made = draft.commit(artifact_pb2.Log(source="made"), producer=PRODUCER)
    trace.promise(send(store, made.path))


def send(store: LocalStore, made: Path) -> str:
    digest, files = store.start_write((made / "manifest.json").read_bytes())
    for file in files or ():
        data = (made / file.path).read_bytes()
        for start in range(file.persisted_size, len(data), 20):
            with store.uploads.open(digest, file.path) as part:
                part.write(start, data[start : start + 20], crc32c(data[start : start + 20]))
    return store.commit_write(digest).digest


def garbage(store: LocalStore, scratch: Path, trace: Trace) -> None:
    """An artifact that stays, and one that is deleted."""
    kept, _ = commit(store, "kept"), commit(store, "lost")
    store.tag("it", kept)
    trace.promise(kept, "it")
    store.collect_garbage(list, 0)


@pytest.mark.parametrize("protocol", [drafts, beside, upload, garbage])
def test_every_state_is_sound(
    tmp_path: Path, protocol: Callable[[LocalStore, Path, Trace], None], count: Callable[[int, int], int]
) -> None:
    root = tmp_path / "disk"
    root.mkdir()
    with pytest.MonkeyPatch.context() as monkeypatch:
        recorder = Recorder(root, monkeypatch)
        protocol(LocalStore(root / "store"), tmp_path / "scratch", recorder.trace)
        recorder.look()
    trace, chance = recorder.trace, random.Random(0)
    disk = Disk(recorder.root)
    # The first state after a call, where nothing is there that need not be, is tried in any case.
    first: list[tuple[int, Names, dict[int, bytes]]] = []
    others: list[tuple[int, Names, dict[int, bytes]]] = []
    seen: set[Any] = set()
    for num_events, event in enumerate(trace.events, 1):
        disk.play(event)
        states = first
        for names, data in disk.states(chance):
            num_promised = sum(at <= num_events for at, _, _ in trace.promises)
            known = (frozenset(names.items()), frozenset(data.items()), num_promised)
            if known not in seen:
                seen.add(known)
                states.append((num_events, names, data))
            states = others
    tried = first + chance.sample(others, count(len(others), 100))
    for num_events, names, data in tried:
        target = tmp_path / "after"
        disk.write(names, data, target)
        check(LocalStore(target / "store"), trace, num_events, tmp_path / "scratch" / "made")
        shutil.rmtree(target)
    print(f"{protocol.__name__}: {len(trace.events)} calls, {len(tried)} states of {len(seen)}, 0 bad")  # noqa: T201


def check(store: LocalStore, trace: Trace, num_events: int, made: Path) -> None:
    """What is visible is whole, what was promised before the power went is there, a broken write can go on."""
    for digest in store.digests():
        store.verify(digest)
    tags = store.tags()
    assert set(tags.values()) <= set(store.digests())
    assert {digest for at, digest, _ in trace.promises if at <= num_events and digest} <= set(store.digests())
    for tag in {name for _, _, name in trace.promises if name}:
        said = [(0, None), *((at, digest) for at, digest, name in trace.promises if name == tag)]
        before = [digest for at, digest in said if at <= num_events]
        # What was about to be said may be so already.
        after = [digest for at, digest in said if at > num_events]
        assert tags.get(tag) in (before[-1], *after[:1])
    if made.is_dir():
        # What the disk lost of a file is found at its end, and the file sent again.
        with suppress(ArtifactFaultError):
            send(store, made)
        store.verify(send(store, made))
