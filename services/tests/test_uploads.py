"""Writing an artifact in chunks: resumed anywhere, checked everywhere, visible only when it is whole."""

import os
import random
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from vlmpress.artifact import Artifact, ArtifactFaultError, create, digest_bytes, from_json_bytes, to_json_bytes
from vlmpress.artifact.v1 import artifact_pb2
from vlmpress_services.errors import ConflictError, InvalidRequestError, NotFoundError
from vlmpress_services.store import parts, uploads
from vlmpress_services.store.checksum import crc32c
from vlmpress_services.store.local import LocalStore
from vlmpress_services.store.parts import PartFile
from vlmpress_services.store.uploads import FileStatus, IncompleteWriteError

FILES = {"a/b/deep.bin": 100_003, "empty": 0, "one": 1, "z.bin": 4096}


@pytest.fixture
def made(tmp_path: Path) -> Artifact:
    """An artifact outside the store."""
    with create(tmp_path / "made") as draft:
        for name, size in FILES.items():
            (draft.path / name).parent.mkdir(parents=True, exist_ok=True)
            (draft.path / name).write_bytes(random.Random(name).randbytes(size))
        return draft.commit(artifact_pb2.Log(source="test"), producer=("test", "0"))


def manifest_json(made: Artifact) -> bytes:
    return (made.path / "manifest.json").read_bytes()


def write(store: LocalStore, made: Artifact, name: str, chunk: int = 1000, until: int | None = None) -> None:
    """Sends a file from where it is, opening it anew for each chunk."""
    data = (made.path / name).read_bytes()[:until]
    status = {file.path: file.persisted_size for file in store.uploads.status(made.digest)}
    for offset in range(status[name], len(data), chunk):
        piece = data[offset : offset + chunk]
        with store.uploads.open(made.digest, name) as part:
            assert part.write(offset, piece, crc32c(piece)) == offset + len(piece)


def test_what_was_written_in_pieces_is_the_artifact(store: LocalStore, made: Artifact) -> None:
    digest, files = store.start_write(manifest_json(made))
    assert digest == made.digest
    assert files == [FileStatus(name, 0) for name in FILES]
    write(store, made, "a/b/deep.bin", until=5_500)
    assert store.start_write(manifest_json(made))[1] == [
        FileStatus(name, 5_500 if "deep" in name else 0) for name in FILES
    ]
    with pytest.raises(IncompleteWriteError, match=r"a/b/deep\.bin"):
        store.commit_write(digest)
    assert store.digests() == ()
    for name in FILES:
        write(store, made, name)
    assert store.uploads.status(digest) == [FileStatus(name, size) for name, size in FILES.items()]
    assert store.digests() == ()
    assert store.commit_write(digest).digest == digest
    assert store.verify(digest).manifest == made.manifest
    assert store.commit_write(digest).digest == digest
    assert store.start_write(manifest_json(made)) == (digest, None)
    assert not list((store.root / "uploads").iterdir())


def test_a_chunk_elsewhere_is_refused_and_told_where(store: LocalStore, made: Artifact) -> None:
    store.start_write(manifest_json(made))
    write(store, made, "z.bin", until=2000)
    for offset in (0, 1999, 2001):
        with store.uploads.open(made.digest, "z.bin") as part, pytest.raises(ConflictError) as caught:
            part.write(offset, b"x", crc32c(b"x"))
        assert caught.value.metadata == {"persisted_size": "2000"}


def test_a_changed_chunk_leaves_nothing(store: LocalStore, made: Artifact) -> None:
    store.start_write(manifest_json(made))
    with store.uploads.open(made.digest, "z.bin") as part:
        with pytest.raises(ArtifactFaultError, match="CRC-32C"):
            part.write(0, b"x" * 10, crc32c(b"y" * 10))
        for piece in (b"", b"x" * 4097, b"x" * (parts.MAX_CHUNK_BYTES + 1)):
            with pytest.raises(InvalidRequestError, match="expected 1 to"):
                part.write(0, piece, crc32c(piece))
        assert part.write(0, b"x", crc32c(b"x")) == 1


def test_a_wrong_file_starts_from_0(store: LocalStore, made: Artifact) -> None:
    store.start_write(manifest_json(made))
    wrong = b"x" * 4096
    with store.uploads.open(made.digest, "z.bin") as part, pytest.raises(ArtifactFaultError, match="SHA-256"):
        part.write(0, wrong, crc32c(wrong))
    assert store.uploads.status(made.digest)[-1] == FileStatus("z.bin", 0)
    write(store, made, "z.bin")


def test_a_full_part_whose_writer_was_killed_is_checked(store: LocalStore, made: Artifact) -> None:
    store.start_write(manifest_json(made))
    part = store.root / "uploads" / made.digest / "parts" / "3"
    part.write_bytes(b"x" * 4096)
    assert store.start_write(manifest_json(made))[1][-1] == FileStatus("z.bin", 0)
    part.write_bytes((made.path / "z.bin").read_bytes())
    assert store.start_write(manifest_json(made))[1][-1] == FileStatus("z.bin", 4096)
    with pytest.raises(ConflictError, match="whole"), store.uploads.open(made.digest, "z.bin"):
        pass


def test_two_writers_of_one_file_do_not_mix(store: LocalStore, made: Artifact) -> None:
    store.start_write(manifest_json(made))
    data = (made.path / "z.bin").read_bytes()
    with store.uploads.open(made.digest, "z.bin") as one, store.uploads.open(made.digest, "z.bin") as two:
        one.write(0, data[:100], crc32c(data[:100]))
        with pytest.raises(ConflictError):
            two.write(0, data[:200], crc32c(data[:200]))
        two.write(100, data[100:], crc32c(data[100:]))
        with pytest.raises(InvalidRequestError):
            one.write(4096, b"x", crc32c(b"x"))
        with pytest.raises(ConflictError):
            one.write(100, data[100:], crc32c(data[100:]))
    assert store.uploads.status(made.digest)[-1] == FileStatus("z.bin", 4096)


@pytest.mark.parametrize("name", ["../x", "/x", "a\\b", "manifest.json", "x/" + "y" * 256])
def test_a_manifest_that_names_other_places_is_refused(store: LocalStore, name: str) -> None:
    manifest = artifact_pb2.Manifest(format_version=1, kind="log", log=artifact_pb2.Log())
    manifest.files.add(path=name, sha256=digest_bytes(b""))
    with pytest.raises(ArtifactFaultError):
        store.start_write(to_json_bytes(manifest))
    assert not store.root.exists()


def test_bad_manifests_are_refused(store: LocalStore, made: Artifact, monkeypatch: pytest.MonkeyPatch) -> None:
    for data in (b"", b"{}", b"\xff", manifest_json(made).replace(b"  ", b" "), manifest_json(made) + b"\n"):
        with pytest.raises(ArtifactFaultError):
            store.start_write(data)
    manifest = from_json_bytes(manifest_json(made))
    manifest.files[1].sha256 = "0" * 64
    with pytest.raises(ArtifactFaultError, match="of no bytes"):
        store.start_write(to_json_bytes(manifest))
    monkeypatch.setattr(uploads, "MAX_ARTIFACT_BYTES", 104_099)
    with pytest.raises(InvalidRequestError, match="at most 104099 bytes of files, got 104100"):
        store.start_write(manifest_json(made))
    assert not store.root.exists()


def test_what_has_not_begun_is_not_found(store: LocalStore, made: Artifact) -> None:
    for act in (store.uploads.status, store.commit_write):
        with pytest.raises(NotFoundError):
            act(made.digest)
        with pytest.raises(InvalidRequestError):
            act("../x")
    assert not store.uploads.abandon(made.digest)
    store.start_write(manifest_json(made))
    with pytest.raises(NotFoundError), store.uploads.open(made.digest, "../z.bin"):
        pass
    assert store.uploads.abandon(made.digest)
    with pytest.raises(NotFoundError):
        store.uploads.status(made.digest)


def test_old_writes_expire(store: LocalStore, made: Artifact) -> None:
    store.start_write(manifest_json(made))
    write(store, made, "z.bin", until=10)
    store.uploads.expire()
    assert store.uploads.status(made.digest)[-1].persisted_size == 10
    folder = store.root / "uploads" / made.digest
    past_s = time.time() - uploads.EXPIRY_S - 60
    for path in (folder, *folder.rglob("*")):
        os.utime(path, (past_s, past_s))
    store.uploads.expire()
    assert not folder.exists()


def test_a_write_of_what_the_store_has_makes_it_young(store: LocalStore, made: Artifact, add_log: Any) -> None:
    there = store.add(made.path)
    os.utime(there.path, (0, 0))
    assert store.start_write(manifest_json(made)) == (made.digest, None)
    assert time.time() - there.path.stat().st_mtime < 3600


def test_a_file_stays_open_until_its_chunk_is_written(
    store: LocalStore, made: Artifact, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    store.start_write(manifest_json(made))
    data = (made.path / "z.bin").read_bytes()
    writing, closed = threading.Event(), threading.Event()
    append = parts.PartFile._append

    def slow(self: Any, offset: int, piece: bytes) -> None:
        writing.set()
        closed.wait(10)
        append(self, offset, piece)

    monkeypatch.setattr(parts.PartFile, "_append", slow)
    with ThreadPoolExecutor(1) as pool:
        with store.uploads.open(made.digest, "z.bin") as part:
            written = pool.submit(part.write, 0, data[:100], crc32c(data[:100]))
            writing.wait(10)
        with (tmp_path / "other").open("wb"):  # would get the number of a file that was closed
            closed.set()
            assert written.result() == 100
    assert (tmp_path / "other").read_bytes() == b""
    assert store.uploads.status(made.digest)[-1].persisted_size == 100
    with pytest.raises(InvalidRequestError, match="closed"):
        part.write(100, data[100:], crc32c(data[100:]))


def test_who_comes_late_changes_nothing_of_a_file_that_is_whole(store: LocalStore, made: Artifact) -> None:
    store.start_write(manifest_json(made))
    folder, number = store.root / "uploads" / made.digest, 0
    file = made.manifest.files[number]
    late = PartFile(folder, number, file)
    write(store, made, file.path)
    # Of several that open a file as it is finished, one may make its part anew.
    other = PartFile(folder, number, file)
    late.settle()
    with pytest.raises(ConflictError):
        late.write(0, b"x", crc32c(b"x"))
    late.close()
    assert (folder / "whole" / file.path).read_bytes() == (made.path / file.path).read_bytes()
    data = (made.path / file.path).read_bytes()
    assert other.write(0, data, crc32c(data)) == len(data)
    other.close()
    assert (folder / "whole" / file.path).read_bytes() == data


def test_a_write_that_was_given_up_takes_no_more(store: LocalStore, made: Artifact) -> None:
    store.start_write(manifest_json(made))
    data = (made.path / "z.bin").read_bytes()
    with store.uploads.open(made.digest, "z.bin") as part:
        part.write(0, data[:-1], crc32c(data[:-1]))
        assert store.uploads.abandon(made.digest)
        part.write(len(data) - 1, data[-1:], crc32c(data[-1:]))
    with pytest.raises(NotFoundError, match="no write has begun"):
        store.commit_write(made.digest)
    assert not list((store.root / "uploads").iterdir())


@pytest.mark.parametrize("call", ["fsync", "utime"])
def test_what_the_disk_may_lose_is_not_acknowledged(
    store: LocalStore, made: Artifact, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    place = store.root / "artifacts"

    def fail(target: Any, *arguments: Any) -> Any:
        is_handle = isinstance(target, int)
        path = Path(f"/proc/self/fd/{target}").readlink() if is_handle else Path(target)
        if place in (path, path.parent):
            raise OSError(5, "Input/output error")
        return original(target, *arguments)

    store.start_write(manifest_json(made))
    for name in FILES:
        write(store, made, name)
    original = getattr(os, call)
    with monkeypatch.context() as broken:
        broken.setattr(os, call, fail)
        # Once it has been renamed it is there, and still nobody may be told so.
        for ask in (lambda: store.commit_write(made.digest), lambda: store.start_write(manifest_json(made))) * 2:
            with pytest.raises(OSError, match="Input/output"):
                ask()
    assert store.commit_write(made.digest).digest == made.digest
    assert store.verify(made.digest)


def test_many_clients_write_at_once_the_same_and_others(store: LocalStore, tmp_path: Path) -> None:
    def make(number: int, size: int) -> Artifact:
        with create(tmp_path / f"made {number}") as draft:
            for name in "ab":
                (draft.path / name).write_bytes(random.Random(f"{number} {name}").randbytes(size))
            return draft.commit(artifact_pb2.Log(source=str(number)), producer=("test", "0"))

    def push(made: Artifact) -> None:
        while store.start_write(manifest_json(made))[1] is not None:
            # Of several that write the same, one is ahead, and the others are told.
            with suppress(ConflictError, NotFoundError, IncompleteWriteError):
                for name in "ab":
                    write(store, made, name)
                store.commit_write(made.digest)

    same, others = [make(number, 20_000) for number in range(4)], [make(100 + number, 10) for number in range(40)]
    with ThreadPoolExecutor(8) as pool:
        for done in [pool.submit(push, made) for made in [*same, *others[:20]] * 2 + [*same, *others] * 2]:
            done.result()
    assert store.digests() == tuple(sorted(made.digest for made in [*same, *others]))
    for digest in store.digests():
        store.verify(digest)
    assert not list((store.root / "uploads").iterdir())
