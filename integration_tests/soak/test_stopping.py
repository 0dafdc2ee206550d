"""A server that is told to stop while it works: what was acknowledged is there, and the end comes in time."""

import itertools
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import grpc
import pytest

from vlmpress.artifact import Artifact, create
from vlmpress.artifact.v1 import artifact_pb2
from vlmpress.edgevlm.v1 import edgevlm_service_pb2 as pb
from vlmpress.edgevlm.v1.edgevlm_service_pb2_grpc import EdgeVlmServiceStub
from vlmpress_services.clients import ArtifactClient
from vlmpress_services.clients.retries import BROKEN_CODES, Breaks
from vlmpress_services.errors import ServiceError
from vlmpress_services.store.local import LocalStore

GRACE_S = 5.0


def report(text: str) -> None:
    sys.stderr.write(text + "\n")


def test_a_server_told_to_stop_ends_what_runs(
    launch: Any, model_store: LocalStore, tiny: Artifact, png: bytes, count: Callable[[int, int], int]
) -> None:
    for _ in range(count(10, 1)):
        server = launch(model_store.root, "--services", "edgevlm", "--grace-s", str(GRACE_S))
        request = pb.GenerateRequest(model=tiny.digest, images=[png], prompt="is it red ?", max_new_tokens=150)
        with grpc.insecure_channel(server.address) as channel:
            stub = EdgeVlmServiceStub(channel)
            calls = [stub.Generate(request, timeout=60) for _ in range(20)]
            for call in calls:
                next(call)
            start_s = time.monotonic()
            server.process.send_signal(signal.SIGTERM)
            ends = [list(call)[-1].WhichOneof("event") for call in calls]
        assert server.process.wait(30) == 0
        report(f"SIGTERM, 20 answers in flight: ended after {time.monotonic() - start_s:.2f} s")
        assert ends == ["finish"] * 20
        assert time.monotonic() - start_s < GRACE_S + 1


def push_on(address: str, folder: Path, acknowledged: list[str]) -> str:
    """Writes artifacts to a server until it takes no more; the code that it ends with."""
    with ArtifactClient(address) as client:
        for number in itertools.count():
            directory = folder / str(number)
            with create(directory) as draft:
                (draft.path / "data").write_bytes(os.urandom(200_000))
                draft.commit(artifact_pb2.Log(source=folder.name), producer=("soak", "1"))
            try:
                acknowledged.append(client.push(directory))
            except ServiceError as error:
                return error.code
    raise AssertionError


def test_what_was_acknowledged_is_there_when_the_server_has_stopped(
    launch: Any, tmp_path: Path, count: Callable[[int, int], int], monkeypatch: pytest.MonkeyPatch
) -> None:
    # The server does not come back, and nobody need wait for it.
    monkeypatch.setattr("vlmpress_services.clients.artifact.Breaks", partial(Breaks, max_in_row=2))
    for repeat in range(count(10, 1)):
        store = LocalStore(tmp_path / f"store {repeat}")
        server = launch(store.root, "--services", "artifact", "--grace-s", str(GRACE_S), "--quiet")
        acknowledged: list[str] = []
        with ThreadPoolExecutor(20) as pool:
            folders = [tmp_path / f"{repeat}-{worker}" for worker in range(20)]
            writers = [pool.submit(push_on, server.address, folder, acknowledged) for folder in folders]
            time.sleep(2)
            start_s = time.monotonic()
            server.process.send_signal(signal.SIGTERM)
            try:
                assert server.process.wait(30) == 0
            finally:
                server.process.kill()  # or the writers would never end
            seconds = time.monotonic() - start_s
            codes = {writer.result(60) for writer in writers}
        report(f"SIGTERM, 20 writers: {len(acknowledged)} acknowledged, ended after {seconds:.2f} s")
        assert seconds < GRACE_S + 1
        assert acknowledged
        assert codes == {"UNAVAILABLE"}
        for digest in acknowledged:
            store.verify(digest)


def test_a_call_without_end_is_cut_off(launch: Any, tmp_path: Path) -> None:
    grace_s = 1.0
    server = launch(tmp_path / "store", "--services", "tokenreduce", "--grace-s", str(grace_s))
    with grpc.insecure_channel(server.address) as channel:
        release = threading.Event()

        def never() -> Any:
            release.wait(60)
            yield from ()

        calls = [
            channel.stream_unary("/vlmpress.tokenreduce.v1.TokenReduceService/Calibrate").future(never(), timeout=60)
            for _ in range(20)
        ]
        time.sleep(0.5)
        start_s = time.monotonic()
        server.process.send_signal(signal.SIGTERM)
        assert server.process.wait(30) == 0
        seconds = time.monotonic() - start_s
        report(f"SIGTERM, 20 endless calls: ended after {seconds:.2f} s")
        assert grace_s <= seconds < grace_s + 1
        assert {call.exception(10).code().name for call in calls} <= set(BROKEN_CODES)
        release.set()
