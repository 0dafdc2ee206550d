"""What a bucket's store keeps on its machine: within its bound, the longest unused gone first, never what is in use."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from vlmpress.artifact import Artifact, create, verify
from vlmpress.artifact.v1 import artifact_pb2
from vlmpress_services.errors import InvalidRequestError
from vlmpress_services.store.cache import Cache
from vlmpress_services.store.opening import open_store

HOLDER = """
import sys
from pathlib import Path
from vlmpress_services.store.cache import Cache
print(Cache(Path(sys.argv[1]) / "cache", Path(sys.argv[1]) / "incoming").get(sys.argv[2]), flush=True)
sys.stdin.read()
"""


def made(folder: Path, text: str, size: int = 1000) -> Artifact:
    with create(folder / text) as draft:
        (draft.path / "file").write_bytes(text.encode() * size)
        return draft.commit(artifact_pb2.Log(source=text), producer=("test", "0"))


def cache(folder: Path, max_bytes: int | None = 4000, lease_s: float = 0.0) -> Cache:
    return Cache(folder / "cache", folder / "incoming", max_bytes=max_bytes, lease_s=lease_s)


def held(folder: Path) -> set[str]:
    return {path.name for path in (folder / "cache").iterdir()}


def test_the_longest_unused_goes_first(tmp_path: Path) -> None:
    kept = cache(tmp_path)
    first, second, third = (made(tmp_path, text) for text in "abc")
    for number, artifact in enumerate((first, second)):
        place = kept.put(artifact)
        os.utime(place, (number, number))
    assert kept.get(first.digest)
    kept.put(third)
    assert held(tmp_path) == {first.digest, third.digest}
    assert kept.get(second.digest) is None
    assert not list((tmp_path / "incoming").iterdir())
    verify(tmp_path / "cache" / first.digest)


def test_what_this_process_asked_for_stays(tmp_path: Path) -> None:
    kept = cache(tmp_path, max_bytes=0, lease_s=3600)
    artifacts = [made(tmp_path, text) for text in "abc"]
    for artifact in artifacts:
        kept.put(artifact)
    assert held(tmp_path) == {artifact.digest for artifact in artifacts}
    last = made(tmp_path, "d")
    cache(tmp_path, max_bytes=0).put(last)
    assert held(tmp_path) == {last.digest}


def test_what_another_process_asked_for_stays_until_it_ends(tmp_path: Path) -> None:
    kept = cache(tmp_path, max_bytes=0)
    first, second = made(tmp_path, "a"), made(tmp_path, "b")
    cache(tmp_path, max_bytes=None).put(first)
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(tmp_path), first.digest], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert holder.stdin is not None
    assert holder.stdout is not None
    try:
        assert first.digest in holder.stdout.readline().decode()
        kept.put(second)
        assert held(tmp_path) == {first.digest, second.digest}
    finally:
        holder.stdin.close()
        holder.stdout.close()
        holder.wait(20)
    third = made(tmp_path, "c")
    kept.put(third)
    assert held(tmp_path) == {third.digest}


def test_without_a_bound_nothing_goes(tmp_path: Path) -> None:
    kept = cache(tmp_path, max_bytes=None)
    for text in "abc":
        kept.put(made(tmp_path, text))
    assert len(held(tmp_path)) == 3


def test_the_first_of_equal_ones_stays(tmp_path: Path) -> None:
    kept = cache(tmp_path)
    place = kept.put(made(tmp_path / "one", "a"))
    number = place.stat().st_ino
    again = made(tmp_path / "two", "a")
    assert kept.put(again) == place
    assert place.stat().st_ino == number
    assert again.path.is_dir()


def test_artifacts_of_a_bucket_are_fetched_again(open_bucket: Any) -> None:
    there = open_bucket()
    digests = []
    for text in "abc":
        with there.draft() as draft:
            (draft.path / "file").write_bytes(text.encode() * 1000)
            digests.append(draft.commit(artifact_pb2.Log(source=text), producer=("test", "0")).digest)
    here = open_bucket(cache_bytes=2500, lease_s=0.0)
    for digest in digests * 2:
        assert verify(here.resolve(digest).path).digest == digest
        assert len(held(here.root)) == 1
    assert len(held(there.root)) == 3


def test_whoever_is_told_of_the_folder_keeps_to_the_bound(open_bucket: Any) -> None:
    first = open_bucket(cache_bytes=0)
    assert (first.root / "store.url").read_text().splitlines()[1:] == ["cache bytes 0"]
    job = open_store(first.root, lease_s=0.0)
    for text in ("a", "b"):
        with job.draft() as draft:
            draft.commit(artifact_pb2.Log(source=text), producer=("test", "0"))
        assert len(held(first.root)) == 1
    # A command that is told the URL alone leaves the bound as it is.
    open_store(open_bucket.url, root=first.root)
    assert "cache bytes 0" in (first.root / "store.url").read_text()
    (first.root / "store.url").write_text(f"{open_bucket.url}\ncache bytes many\n")
    with pytest.raises(InvalidRequestError, match=r"store.url: expected 'cache bytes ' and a whole number, got 'many'"):
        open_store(first.root)
