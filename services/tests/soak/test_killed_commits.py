"""kill -9 during commits: nothing half-written is ever visible, and what was acknowledged is there."""

import os
import random
import signal
import time
from collections.abc import Callable
from pathlib import Path

from vlmpress.artifact import create
from vlmpress.artifact.v1 import artifact_pb2
from vlmpress_services.store.checksum import crc32c
from vlmpress_services.store.local import LocalStore

PRODUCER = ("test", "0")
# Of a child before it is killed: two commits and a tag, four times.
MAX_STEPS = 12


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


def killed_child(store: LocalStore, name: str, scratch: Path, num_steps: int, delay_s: float) -> list[str]:
    """What a child acknowledged before it was killed, some time after it had acknowledged so many steps."""
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
        lines = [pipe.readline() for _ in range(1 + num_steps)]
        time.sleep(delay_s)
        os.kill(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
        assert os.WIFSIGNALED(status), "the child ended by itself"
        return b"".join([*lines, *pipe]).decode().splitlines()[1:]


def step_s(store: LocalStore, scratch: Path) -> float:
    """Seconds that one of two commits takes here, about."""
    start_s = time.monotonic()
    commit_draft(store, "before")
    commit_upload(store, "before-sent", scratch)
    return (time.monotonic() - start_s) / 2


def test_killed_commits(store: LocalStore, tmp_path: Path, count: Callable[[int, int], int]) -> None:
    chance, scratch = random.Random(0), tmp_path / "scratch"
    longest_s, latest = step_s(store, scratch), ""
    seen = set(store.digests())
    nums_acknowledged = []
    for number in range(count(1000, 50)):
        num_steps, delay_s = chance.randrange(MAX_STEPS), chance.uniform(0, longest_s)
        lines = killed_child(store, str(number), scratch, num_steps, delay_s)
        visible = set(store.digests())
        for digest in visible - seen:
            store.verify(digest)
        acknowledged = {line for line in lines if not line.startswith("tag ")}
        assert acknowledged | seen <= visible
        num_before = max((place for place, line in enumerate(lines, 1) if line.startswith("tag ")), default=0)
        if num_before:
            latest = lines[num_before - 1].removeprefix("tag ")
        # Else the child was killed after it had moved the tag on, and before it could say so.
        tagged = store.tags().get("latest", "")
        assert tagged == latest or tagged in visible - seen - set(lines[:num_before])
        latest, seen = tagged, visible
        nums_acknowledged.append(len(acknowledged))
    assert len(set(nums_acknowledged)) > 4, "the kills fell into few commits"
    for digest in seen:
        store.verify(digest)
    print(f"kills {number + 1}, visible {len(seen)}, acknowledged {sum(nums_acknowledged)}, corrupt 0, lost 0")  # noqa: T201
