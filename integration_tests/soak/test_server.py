"""A server that is asked too much, asked wrongly, and told to stop."""

import asyncio
import itertools
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import grpc
import numpy as np
from grpc_health.v1 import health_pb2, health_pb2_grpc
from integration_tests.soak import traffic

from vlmpress.artifact import Artifact, create
from vlmpress.artifact.v1 import artifact_pb2
from vlmpress.edgevlm.v1 import edgevlm_service_pb2 as pb
from vlmpress.edgevlm.v1.edgevlm_service_pb2_grpc import EdgeVlmServiceStub
from vlmpress_services.clients import ArtifactClient
from vlmpress_services.errors import ServiceError
from vlmpress_services.store.local import LocalStore

MIB = 1 << 20
EXPECTED = {"OK", "INVALID_ARGUMENT", "NOT_FOUND", "UNIMPLEMENTED", "FAILED_PRECONDITION", "DATA_LOSS"}
GRACE_S = 5.0


def health_s(stub: health_pb2_grpc.HealthStub) -> float:
    """Seconds that one health check takes."""
    start_s = time.perf_counter()
    stub.Check(health_pb2.HealthCheckRequest(), timeout=30)
    return time.perf_counter() - start_s


def report(text: str) -> None:
    print(text, file=sys.stderr)  # noqa: T201 - the figures of a soak run


def test_malformed_calls_and_garbage_connections(launch: Any, tmp_path: Path, count: Callable[[int, int], int]) -> None:
    server = launch(tmp_path / "store", "--quiet")
    num_calls, num_connections = count(50_000, 500), count(500, 27)
    asyncio.run(traffic.send_all(server.address, traffic.malformed(1, num_calls // 10), 64))
    before = traffic.rss_bytes(server.process.pid)
    codes = asyncio.run(traffic.send_all(server.address, traffic.malformed(0, num_calls), 64))
    traffic.send_garbage(server.address, 0, num_connections)
    grown = traffic.rss_bytes(server.process.pid) - before
    report(f"malformed: {num_calls} calls, {num_connections} connections, {dict(codes)}, {grown / MIB:+.1f} MiB")
    assert server.process.poll() is None, "the server has ended"
    with grpc.insecure_channel(server.address) as channel:
        assert health_s(health_pb2_grpc.HealthStub(channel)) < 30
    assert sum(codes.values()) == num_calls
    assert set(codes) <= EXPECTED
    assert grown <= 20 * MIB


def test_mixed_calls_keep_no_memory(launch: Any, tmp_path: Path, count: Callable[[int, int], int]) -> None:
    server = launch(tmp_path / "store", "--quiet", "--services", "artifact,evaluation,stagetrain")
    num_warm, num_calls, num_steps = count(10_000, 500), count(100_000, 1_000), 20
    asyncio.run(traffic.send_all(server.address, traffic.mixed(1, num_warm), 32))
    sizes, codes = [traffic.rss_bytes(server.process.pid)], Counter[str]()
    requests = traffic.mixed(0, num_calls)
    for _ in range(num_steps):
        step = itertools.islice(requests, num_calls // num_steps)
        codes += asyncio.run(traffic.send_all(server.address, step, 32))
        sizes.append(traffic.rss_bytes(server.process.pid))
    slope = float(np.polyfit(np.arange(num_steps + 1) * (num_calls // num_steps), sizes, 1)[0])
    report(f"mixed: {dict(codes)}, {slope / 1024:+.4f} KiB a call")
    assert set(codes) == {"OK", "INVALID_ARGUMENT", "NOT_FOUND", "UNIMPLEMENTED"}
    if num_calls >= 100_000:  # over fewer calls the allocator's steps are larger than what is asked for
        assert slope < 0.1 * 1024


def test_overload_is_shed_and_health_answers(
    launch: Any, model_store: LocalStore, png: bytes, count: Callable[[int, int], int]
) -> None:
    num_places, num_callers, seconds = 4, count(256, 64), count(20, 3)
    options = ("--services", "edgevlm", "--max-concurrent", str(num_places), "--quiet")
    server = launch(model_store.root, *options)
    request = pb.GenerateRequest(model="tiny", images=[png], prompt="is it red ?", max_new_tokens=100)
    with grpc.insecure_channel(server.address) as channel:
        list(EdgeVlmServiceStub(channel).Generate(request, timeout=60))
        stub = health_pb2_grpc.HealthStub(channel)
        idle = np.quantile([health_s(stub) for _ in range(300)], 0.99)
        before = traffic.rss_bytes(server.process.pid)
        path = "/vlmpress.edgevlm.v1.EdgeVlmService/Generate"
        program = [sys.executable, str(Path(traffic.__file__).with_name("overload.py")), server.address, path]
        with subprocess.Popen(
            [*program, str(num_callers), str(seconds)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        ) as load:
            assert load.stdin is not None
            assert load.stdout is not None
            load.stdin.write(request.SerializeToString())
            load.stdin.close()
            busy_s = []
            while load.poll() is None:
                busy_s.append(health_s(stub))
                time.sleep(0.02)
            result = json.loads(load.stdout.read())
    codes, refused_s = result["codes"], result["refused_s"]
    busy = np.quantile(busy_s, 0.99)
    grown = traffic.rss_bytes(server.process.pid) - before
    report(
        f"overload: {num_callers} callers on {num_places} places, {codes}, refused p50 "
        f"{1e3 * np.median(refused_s):.1f} p99 {1e3 * np.quantile(refused_s, 0.99):.1f} max {1e3 * max(refused_s):.1f} ms, "
        f"health p99 idle {1e3 * idle:.2f} busy {1e3 * busy:.2f} ms, {grown / MIB:+.1f} MiB"
    )
    assert set(codes) == {"OK", "RESOURCE_EXHAUSTED"}
    assert grown <= 64 * MIB


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


def test_what_was_acknowledged_is_there_when_the_server_has_stopped(
    launch: Any, tmp_path: Path, count: Callable[[int, int], int]
) -> None:
    for repeat in range(count(10, 1)):
        store = LocalStore(tmp_path / f"store {repeat}")
        server = launch(store.root, "--services", "artifact", "--grace-s", str(GRACE_S), "--quiet")
        acknowledged: list[str] = []

        def push(worker: int, *, address: str = server.address, found: list[str] = acknowledged) -> None:
            with ArtifactClient(address) as client:
                for number in itertools.count():
                    directory = tmp_path / f"{repeat}-{worker}-{number}"
                    with create(directory) as draft:
                        (draft.path / "data").write_bytes(os.urandom(200_000))
                        draft.commit(artifact_pb2.Log(source=f"{worker} {number}"), producer=("soak", "1"))
                    try:
                        found.append(client.push(directory))
                    except ServiceError:
                        return

        threads = [threading.Thread(target=push, args=(worker,)) for worker in range(20)]
        for thread in threads:
            thread.start()
        time.sleep(2)
        start_s = time.monotonic()
        server.process.send_signal(signal.SIGTERM)
        assert server.process.wait(30) == 0
        seconds = time.monotonic() - start_s
        for thread in threads:
            thread.join(60)
        report(f"SIGTERM, 20 writers: {len(acknowledged)} acknowledged, ended after {seconds:.2f} s")
        assert seconds < GRACE_S + 1
        assert acknowledged
        for digest in acknowledged:
            store.verify(digest)


def test_a_call_without_end_is_cut_off(launch: Any, tmp_path: Path) -> None:
    server = launch(tmp_path / "store", "--services", "tokenreduce", "--grace-s", "1")
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
        assert time.monotonic() - start_s < 2
        assert all(call.exception(10) is not None for call in calls)
        release.set()
