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
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from vlmpress.artifact import ArtifactFaultError, create
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
    promises: list[tuple[int, str, str | None]] = field(default_factory=list)

    def promise(self, digest: str, tag: str | None = None) -> None:
        """From here on an artifact is there, and a tag points at it."""
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


def drafts(store: LocalStore, scratch: Path, trace: Trace) -> None:
    """Two artifacts, a tag that moves from one to the other, and one that goes."""
    digests = []
    for text in ("first", "second"):
        with store.draft() as draft:
            (draft.path / "sub").mkdir()
            (draft.path / "sub" / "a").write_text(text)
            digest = draft.commit(artifact_pb2.Log(source=text), producer=PRODUCER).digest
        trace.promise(digest)
        store.tag("it", digest)
        trace.promise(digest, "it")
        digests.append(digest)
    store.tag("other", digests[0])


def upload(store: LocalStore, scratch: Path, trace: Trace) -> None:
    """A write over the network."""
    with create(scratch / "made") as draft:
        (draft.path / "sub").mkdir()
        (draft.path / "sub" / "a").write_text("a" * 30)
        (draft.path / "empty").write_text("")
        made = draft.commit(artifact_pb2.Log(source="made"), producer=PRODUCER)
    send(store, made.path, made.digest)
    trace.promise(made.digest)


def send(store: LocalStore, made: Path, digest: str) -> None:
    _, files = store.start_write((made / "manifest.json").read_bytes())
    for file in files or ():
        data = (made / file.path).read_bytes()
        for start in range(file.persisted_size, len(data), 20):
            with store.uploads.open(digest, file.path) as part:
                part.write(start, data[start : start + 20], crc32c(data[start : start + 20]))
    store.commit_write(digest)


def garbage(store: LocalStore, scratch: Path, trace: Trace) -> None:
    """An artifact that stays, and one that is deleted."""
    digests = []
    for text in ("kept", "lost"):
        with store.draft() as draft:
            (draft.path / "a").write_text(text)
            (draft.path / "b").write_text(text)
            digests.append(draft.commit(artifact_pb2.Log(source=text), producer=PRODUCER).digest)
    store.tag("it", digests[0])
    trace.promise(digests[0], "it")
    store.collect_garbage(list, 0)


@contextmanager
def recording(root: Path) -> Iterator[Recorder]:
    with pytest.MonkeyPatch.context() as monkeypatch:
        yield Recorder(root, monkeypatch)


@pytest.mark.parametrize("protocol", [drafts, upload, garbage])
def test_every_state_is_sound(
    tmp_path: Path, protocol: Callable[[LocalStore, Path, Trace], None], count: Callable[[int, int], int]
) -> None:
    root = tmp_path / "disk"
    root.mkdir()
    with recording(root) as recorder:
        protocol(LocalStore(root / "store"), tmp_path / "scratch", recorder.trace)
        recorder.look()
    trace, chance = recorder.trace, random.Random(0)
    disk = Disk(recorder.root)
    states: list[tuple[int, Disk, Names, dict[int, bytes]]] = []
    seen: set[Any] = set()
    for place, event in enumerate(trace.events):
        disk.play(event)
        for names, data in disk.states(chance):
            known = (frozenset(names.items()), frozenset(data.items()), num_promised(trace, place))
            if known not in seen:
                seen.add(known)
                states.append((place, disk, names, data))
    wanted = count(len(states), 150)
    for place, _, names, data in states if wanted >= len(states) else chance.sample(states, wanted):
        target = tmp_path / "after"
        disk.write(names, data, target)
        check(LocalStore(target / "store"), trace, place, tmp_path / "scratch" / "made")
        shutil.rmtree(target)
    print(f"{protocol.__name__}: {len(trace.events)} calls, {min(wanted, len(states))} states of {len(states)}, 0 bad")  # noqa: T201


def num_promised(trace: Trace, place: int) -> int:
    return sum(at <= place for at, _, _ in trace.promises)


def check(store: LocalStore, trace: Trace, place: int, made: Path) -> None:
    """What is visible is whole, what was promised before the power went is there, a broken write can go on."""
    for digest in store.digests():
        store.verify(digest)
    tags = store.tags()
    assert set(tags.values()) <= set(store.digests())
    promised = [(digest, tag) for at, digest, tag in trace.promises if at <= place]
    assert {digest for digest, _ in promised} <= set(store.digests())
    last = {tag: digest for digest, tag in promised if tag}
    later = {digest for at, digest, tag in trace.promises if at > place}
    for tag, digest in last.items():
        assert tags[tag] == digest or tags[tag] in later | set(store.digests())
    if made.is_dir():
        digest = trace.promises[0][1]
        # What the disk lost of a file is found at its end, and the file sent again.
        with suppress(ArtifactFaultError):
            send(store, made, digest)
        send(store, made, digest)
        store.verify(digest)
