"""kill -9 during commits: nothing half-written is ever visible, and what was acknowledged is there."""

import os
import random
import select
import signal
import time
from collections.abc import Callable
from pathlib import Path

from vlmpress.artifact import create
from vlmpress.artifact.v1 import artifact_pb2
from vlmpress_services.store.checksum import crc32c
from vlmpress_services.store.local import LocalStore

PRODUCER = ("test", "0")
MAX_DELAY_S = 0.25


def commit_draft(store: LocalStore, text: str) -> str:
    with store.draft() as draft:
        (draft.path / "sub").mkdir()
        (draft.path / "sub" / "a").write_text(text * 100)
        (draft.path / "b").write_text(text)
        return draft.commit(artifact_pb2.Log(source=text), producer=PRODUCER).digest


def commit_upload(store: LocalStore, text: str, scratch: Path) -> str:
    with create(scratch / text) as draft:
        (draft.path / "a").write_text(text * 100)
        made = draft.commit(artifact_pb2.Log(source=text), producer=PRODUCER)
    store.start_write((made.path / "manifest.json").read_bytes())
    data = (made.path / "a").read_bytes()
    with store.uploads.open(made.digest, "a") as part:
        for start in range(0, len(data), 256):
            piece = data[start : start + 256]
            part.write(start, piece, crc32c(piece))
    return store.commit_write(made.digest).digest


def commit_for_ever(store: LocalStore, name: str, scratch: Path, acknowledged: int) -> None:
    """What the child does: each digest goes through the pipe once its commit, or its tag's, has returned."""
    number = 0
    while True:
        digest = commit_draft(store, f"{name}-{number}")
        os.write(acknowledged, f"{digest}\n".encode())
        store.tag("latest", digest)
        os.write(acknowledged, f"tag {digest}\n".encode())
        digest = commit_upload(store, f"{name}-{number}-sent", scratch)
        os.write(acknowledged, f"{digest}\n".encode())
        number += 1


def killed_child(store: LocalStore, name: str, scratch: Path, delay_s: float) -> list[str]:
    """What a child acknowledged before it was killed, some time after its first commit began."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.close(reading)
            os.write(writing, b"begun\n")
            commit_for_ever(store, name, scratch, writing)
        finally:
            os._exit(1)
    os.close(writing)
    with os.fdopen(reading, "rb") as pipe:
        select.select([pipe], [], [])
        time.sleep(delay_s)
        os.kill(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
        assert os.WIFSIGNALED(status), "the child ended by itself"
        return pipe.read().decode().splitlines()[1:]


def test_killed_commits(store: LocalStore, tmp_path: Path, count: Callable[[int, int], int]) -> None:
    chance = random.Random(0)
    seen: set[str] = set()
    num_acknowledged = 0
    for number in range(count(1000, 25)):
        lines = killed_child(store, str(number), tmp_path / "scratch", chance.uniform(0, MAX_DELAY_S))
        visible = set(store.digests())
        for digest in visible - seen:
            store.verify(digest)
        acknowledged = {line for line in lines if not line.startswith("tag ")}
        assert acknowledged | seen <= visible
        seen = visible
        tags = [line.removeprefix("tag ") for line in lines if line.startswith("tag ")]
        if tags:
            latest = store.tags()["latest"]
            assert latest == tags[-1] or latest in visible - set(tags)
        assert set(store.tags().values()) <= visible
        num_acknowledged += len(acknowledged)
    assert num_acknowledged > 0
    for digest in seen:
        store.verify(digest)
    print(f"kills {number + 1}, visible {len(seen)}, acknowledged {num_acknowledged}, corrupt 0, lost 0")  # noqa: T201
