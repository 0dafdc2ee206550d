"""The store in a bucket, on moto's S3 server, and on one that ignores conditions."""

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from vlmpress.artifact import Artifact, ArtifactFaultError, create
from vlmpress.artifact.v1 import artifact_pb2
from vlmpress_services.errors import ConflictError, InvalidRequestError, NotFoundError, RemoteStoreError
from vlmpress_services.store.checksum import crc32c
from vlmpress_services.store.interface import ArtifactStore, Expected
from vlmpress_services.store.local import LocalStore
from vlmpress_services.store.opening import open_store

pytest.importorskip("moto.server")
Open = Callable[..., ArtifactStore]


def commit(store: ArtifactStore, text: str, parents: list[str] | None = None) -> Artifact:
    with store.draft() as draft:
        (draft.path / "sub").mkdir()
        (draft.path / "sub" / "a b+c.txt").write_text(text)
        (draft.path / "empty").write_text("")
        named = [("from", digest) for digest in parents or []]
        return draft.commit(artifact_pb2.Log(source=text), producer=("test", "0"), parents=named)


def test_an_artifact_is_found_by_every_machine(open_bucket: Open) -> None:
    here, there = open_bucket(), open_bucket()
    assert (here.digests(), here.tags(), here.list()) == ((), {}, [])
    made = commit(here, "hello")
    here.tag("it", made.digest)
    found = there.resolve("it")
    assert (found.digest, found.manifest) == (made.digest, made.manifest)
    assert (found.path / "sub" / "a b+c.txt").read_text() == "hello"
    assert found.path != made.path
    assert there.verify(made.digest).digest == made.digest
    assert there.read(made.digest, "sub/a b+c.txt", 1, 3) == b"ell"
    assert there.digests() == (made.digest,)
    assert [artifact.digest for artifact in there.list("log")] == [made.digest]
    assert there.list("model") == []
    assert commit(there, "hello").digest == made.digest
    assert not list((there.root / "incoming").iterdir())


def test_what_is_not_there_is_not_found(open_bucket: Open) -> None:
    store = open_bucket()
    for ref in ("0" * 64, "none"):
        with pytest.raises(NotFoundError):
            store.resolve(ref)
    with pytest.raises(InvalidRequestError):
        store.resolve("../x")
    with pytest.raises(NotFoundError):
        store.tag("it", "0" * 64)
    with pytest.raises(NotFoundError):
        store.refresh("0" * 64)


def test_directories_and_uploads_go_there(open_bucket: Open, tmp_path: Path) -> None:
    store = open_bucket()
    with create(tmp_path / "made") as draft:
        (draft.path / "a").write_bytes(b"a" * 5000)
        made = draft.commit(artifact_pb2.Log(source="x"), producer=("test", "0"))
    digest, files = store.start_write((made.path / "manifest.json").read_bytes())
    assert files is not None
    data = b"a" * 5000
    with store.uploads.open(digest, "a") as part:
        part.write(0, data, crc32c(data))
    assert store.commit_write(digest).digest == store.commit_write(digest).digest == made.digest
    assert open_bucket().verify(digest).manifest == made.manifest
    assert open_bucket().add(made.path).digest == digest
    (made.path / "a").write_bytes(b"b" * 5000)
    with pytest.raises(ArtifactFaultError, match="made/a"):
        open_bucket().add(made.path)


def test_an_artifact_is_there_once_its_mark_is(open_bucket: Open) -> None:
    store: Any = open_bucket()
    made = commit(store, "hello")
    store._bucket.delete(f"artifacts/{made.digest}/manifest.sha256")
    assert not store.has(made.digest)
    assert store.digests() == ()
    assert commit(store, "hello").digest == made.digest
    assert store.verify(made.digest).digest == made.digest


def test_changed_and_missing_objects_are_faults(open_bucket: Open) -> None:
    store: Any = open_bucket()
    made = commit(store, "hello")
    key = f"artifacts/{made.digest}/sub/a b+c.txt"
    store._bucket.put(key, b"jello")
    other = open_bucket()
    for act in (store.verify, other.verify, other.resolve):
        with pytest.raises(ArtifactFaultError):
            act(made.digest)
    assert other.find(made.digest).digest == made.digest
    store._bucket.delete(key)
    for act in (store.verify, other.resolve):
        with pytest.raises(ArtifactFaultError):
            act(made.digest)
    with pytest.raises(ArtifactFaultError):
        other.read(made.digest, "sub/a b+c.txt", 0, 5)
    store._bucket.put(f"artifacts/{made.digest}/manifest.json", b"{}")
    with pytest.raises(ArtifactFaultError):
        open_bucket().find(made.digest)


def test_tags_are_compared_and_swapped(open_bucket: Open) -> None:
    here, there = open_bucket(), open_bucket()
    first, second = commit(here, "a").digest, commit(here, "b").digest
    here.tag("it", first, Expected(None))
    with pytest.raises(ConflictError) as caught:
        there.tag("it", second, Expected(None))
    assert caught.value.metadata == {"found": first}
    there.tag("it", second, Expected(first))
    there.tag("it", second, Expected(first))
    assert here.tags() == {"it": second}
    with pytest.raises(ConflictError):
        here.untag("it", Expected(first))
    assert [here.untag("it"), here.untag("it"), here.untag("none")] == [True, False, False]
    assert there.tags() == {}
    with pytest.raises(NotFoundError):
        there.find("it")
    there.tag("it", first, Expected(None))
    assert here.tags() == {"it": first}


def test_of_many_swaps_at_once_one_wins(open_bucket: Open) -> None:
    stores = [open_bucket() for _ in range(6)]
    digests = [commit(stores[0], str(number)).digest for number in range(6)]

    def swap(store: ArtifactStore, digest: str) -> bool:
        try:
            store.tag("it", digest, Expected(None))
        except ConflictError:
            return False
        return True

    with ThreadPoolExecutor(6) as pool:
        won = list(pool.map(swap, stores, digests))
    assert won.count(True) == 1
    assert stores[0].tags() == {"it": digests[won.index(True)]}


def test_garbage_goes_and_young_files_stay(open_bucket: Open) -> None:
    store: Any = open_bucket()
    base = commit(store, "base").digest
    kept = commit(store, "kept", [base]).digest
    lost = commit(store, "lost").digest
    store.tag("it", kept)
    assert store.collect_garbage(list, 3600) == []
    assert [artifact.digest for artifact in store.collect_garbage(list, 0, dry_run=True)] == [lost]
    assert store.has(lost)
    assert store.collect_garbage(lambda: [lost], 0) == []
    assert [artifact.digest for artifact in store.collect_garbage(list, 0)] == [lost]
    assert set(store.digests()) == {base, kept}
    assert not list(store._bucket.list(f"artifacts/{lost}"))
    assert open_bucket().verify("it").digest == kept
    # Without its mark, as after a writer that was killed: the files stay as long as they are young.
    store._bucket.delete(f"artifacts/{base}/manifest.sha256")
    store.collect_garbage(list, 3600)
    assert list(store._bucket.list(f"artifacts/{base}"))


def test_what_is_written_again_while_garbage_goes_stays(open_bucket: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    store, other = open_bucket(), open_bucket()
    made = commit(store, "a")
    now_s = time.time()
    monkeypatch.setattr(time, "time", lambda: now_s + 7200)
    tags = store.tags

    def written_again() -> dict[str, str]:
        monkeypatch.setattr(time, "time", lambda: now_s)  # younger than an hour, as its new mark is
        assert other.start_write((made.path / "manifest.json").read_bytes()) == (made.digest, None)
        return tags()

    monkeypatch.setattr(store, "tags", written_again)
    assert store.collect_garbage(list, 3600) == []
    assert open_bucket().verify(made.digest).digest == made.digest


def test_a_mark_does_not_come_back_after_its_files_have_gone(
    open_bucket: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, other = open_bucket(), open_bucket()
    made = commit(store, "a")
    find = store.find

    def found_and_gone(ref: str) -> Any:
        found = find(ref)
        monkeypatch.setattr(store, "find", find)
        assert [gone.digest for gone in other.collect_garbage(list, 0)] == [made.digest]
        return found

    monkeypatch.setattr(store, "find", found_and_gone)
    with pytest.raises(NotFoundError):
        store.refresh(made.digest)
    assert store.digests() == ()


def test_a_tag_set_while_garbage_goes_brings_it_back(open_bucket: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    store, other = open_bucket(), open_bucket()
    made = commit(store, "a")
    bucket: Any = store._bucket  # type: ignore[attr-defined]
    delete = bucket.delete

    def tag_and_delete(*keys: str) -> None:
        if keys[0].endswith("manifest.sha256"):
            other.tag("it", made.digest)
        delete(*keys)

    monkeypatch.setattr(bucket, "delete", tag_and_delete)
    assert store.collect_garbage(list, 0) == []
    assert open_bucket().verify("it").digest == made.digest


def test_a_bucket_that_ignores_conditions_takes_one_writer(open_bucket: Open, bucket_server: Any) -> None:
    bucket_server.app_under_test.ignores = True
    with pytest.raises(RemoteStoreError, match="ignores them; only a sole writer"):
        open_bucket()
    sole = open_bucket(sole_writer=True)
    made = commit(sole, "a")
    sole.tag("it", made.digest, Expected(None))
    with pytest.raises(ConflictError):
        sole.tag("it", commit(sole, "b").digest, Expected(None))
    assert open_bucket(writable=False).verify("it").digest == made.digest
    # As a job's worker does, which is told of the folder alone.
    assert open_store(sole.root).untag("it")


def test_probes_leave_nothing(open_bucket: Open) -> None:
    store: Any = open_bucket()
    assert list(store._bucket.list("probes")) == []
    assert [path.name for path in store.root.iterdir()] == ["store.url"]
    assert open_store(store.root).tags() == {}


def test_a_bucket_that_is_not_there_is_an_error_of_one_line(open_bucket: Open, tmp_path: Path) -> None:
    with pytest.raises(RemoteStoreError) as caught:
        open_store("s3://no-such-bucket/x", root=tmp_path / "x")
    assert "\n" not in str(caught.value)
    for url in ("ftp://x/y", "file:///tmp/x"):
        with pytest.raises(InvalidRequestError, match="s3://"):
            open_store(url)
    assert isinstance(open_store(tmp_path / "folder"), LocalStore)
