"""Clients whose server is killed in the middle, and comes back at the same address."""

import asyncio
import hashlib
import random
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from vlmpress.artifact import Artifact, create
from vlmpress.artifact.v1 import artifact_pb2
from vlmpress_services.clients import ArtifactClient, aio
from vlmpress_services.store.local import LocalStore

SIZE_BYTES = 48 << 20


@pytest.fixture
def made(tmp_path: Path) -> Artifact:
    with create(tmp_path / "made") as draft:
        (draft.path / "large.bin").write_bytes(random.Random(0).randbytes(SIZE_BYTES))
        return draft.commit(artifact_pb2.Log(source="test"), producer=("test", "1"))


class Killed:
    """A server that is killed once, and another that then takes its place."""

    def __init__(self, launch: Callable[..., Any], store: Path) -> None:
        self._launch = launch
        self._store = store
        self._server = launch(store, "--services", "artifact")
        self.address: str = self._server.address
        self.num_kills = 0

    def kill(self) -> threading.Thread:
        """Kills it now; the other one starts in a thread."""
        self.num_kills += 1
        self._server.process.kill()
        self._server.process.wait()
        options = (self._store, "--services", "artifact", "--listen", self.address)
        thread = threading.Thread(target=self._launch, args=options)
        thread.start()
        return thread


def test_a_read_goes_on_at_the_next_server(tmp_path: Path, made: Artifact, launch: Callable[..., Any]) -> None:
    store = LocalStore(tmp_path / "store")
    store.add(made.path)
    server = Killed(launch, store.root)
    thread = None
    whole = hashlib.sha256()
    with ArtifactClient(server.address) as client:
        for data in client.read_file(made.digest, "large.bin"):
            whole.update(data)
            if thread is None:
                thread = server.kill()
    assert thread is not None
    thread.join()
    assert whole.hexdigest() == made.manifest.files[0].sha256


async def test_a_push_goes_on_at_the_next_server(tmp_path: Path, made: Artifact, launch: Callable[..., Any]) -> None:
    store = LocalStore(tmp_path / "store")
    server = await asyncio.to_thread(Killed, launch, store.root)
    threads: list[threading.Thread] = []
    seen: list[int] = []

    def progress(done: int, total: int) -> None:
        seen.append(done)
        if done > SIZE_BYTES // 2 and not threads:
            threads.append(server.kill())

    async with aio.ArtifactClient(server.address) as client:
        assert await client.push(made.path, "it", progress) == made.digest
    threads[0].join()
    assert store.verify("it").manifest == made.manifest
    # At most the chunk that was on its way is sent twice.
    assert len(seen) <= SIZE_BYTES // (1 << 20) + 1
