"""Clients whose server is killed in the middle, and comes back at the same address."""

import asyncio
import hashlib
import random
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from vlmpress.artifact import Artifact, create
from vlmpress.artifact.v1 import artifact_pb2
from vlmpress.job.v1 import job_pb2 as pb
from vlmpress_services.clients import ArtifactClient, JobClient, aio
from vlmpress_services.clients.artifact_files import CHUNK_BYTES, MAX_UNANSWERED
from vlmpress_services.store.local import LocalStore

SIZE_BYTES = 48 << 20


@pytest.fixture
def made(tmp_path: Path) -> Artifact:
    with create(tmp_path / "made") as draft:
        (draft.path / "large.bin").write_bytes(random.Random(0).randbytes(SIZE_BYTES))
        return draft.commit(artifact_pb2.Log(source="test"), producer=("test", "1"))


class Killed:
    """A server that is killed once, and another that then takes its place."""

    def __init__(self, launch: Callable[..., Any], store: Path, service: str = "artifact") -> None:
        self._launch = launch
        self._options = (store, "--services", service)
        self._server = launch(*self._options)
        self.address: str = self._server.address
        self.num_kills = 0

    def kill(self) -> threading.Thread:
        """Kills it now; the other one starts in a thread."""
        self.num_kills += 1
        self._server.process.kill()
        self._server.process.wait()
        thread = threading.Thread(target=self._launch, args=(*self._options, "--listen", self.address))
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
    # At most the chunks that were on their way are sent twice.
    assert len(seen) <= SIZE_BYTES // CHUNK_BYTES + MAX_UNANSWERED


def test_a_watch_and_a_log_go_on_at_the_next_server(
    own_store: LocalStore, tiny_dataset: Artifact, launch: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    # A worker prints little: this makes it print what OpenMP is set to when it loads torch.
    monkeypatch.setenv("OMP_DISPLAY_ENV", "true")
    settings = "training: {max_steps: 150, per_device_train_batch_size: 2, save_steps: 10}"
    train = pb.TrainJob(model="tiny", dataset="questions", scheme="plain", settings_yaml=settings)
    server = Killed(launch, own_store.root, "job")
    heard = {1: b"", 2: b""}
    states: list[pb.Job] = []
    with JobClient(server.address) as client, ThreadPoolExecutor() as pool:
        job = client.create(pb.JobSpec(train=train), "once")

        def listen() -> None:
            for piece in client.log(job.job_id, follow=True):
                assert piece.offset == len(heard[piece.attempt])
                heard[piece.attempt] += piece.data

        listening, starting = pool.submit(listen), None
        for state in client.watch(job.job_id):
            states.append(state)
            if starting is None and state.train_progress.step >= 20:
                assert heard[1]
                starting = server.kill()
        listening.result(60)
    assert starting is not None
    starting.join()
    assert (states[-1].state, states[-1].attempt) == (pb.JOB_STATE_SUCCEEDED, 2), states[-1].message
    revisions = [state.revision for state in states]
    assert revisions == sorted(set(revisions))
    log = own_store.verify(states[-1].log)
    assert heard == {number: (log.path / f"attempt-{number}.log").read_bytes() for number in (1, 2)}
