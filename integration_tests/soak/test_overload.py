"""A server that is asked 64 times as much as it does at a time."""

import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import psutil
from grpc_health.v1 import health_pb2, health_pb2_grpc

from vlmpress.edgevlm.v1 import edgevlm_service_pb2 as pb
from vlmpress.edgevlm.v1.edgevlm_service_pb2_grpc import EdgeVlmServiceStub
from vlmpress_services.store.local import LocalStore

MIB = 1 << 20
WANTED_S = 0.1
FULL_CALLERS = 256
CALLERS = Path(__file__).with_name("overload.py")


def shown(times_s: dict[str, float]) -> str:
    """Shares of times as text."""
    half, most, worst = (1e3 * times_s[share] for share in ("0.5", "0.99", "1"))
    return f"p50 {half:.1f} p99 {most:.1f} max {worst:.1f} ms"


def health_s(stub: health_pb2_grpc.HealthStub) -> float:
    """Seconds that one health check takes."""
    start_s = time.perf_counter()
    stub.Check(health_pb2.HealthCheckRequest(), timeout=30)
    return time.perf_counter() - start_s


def test_overload_is_shed_and_health_answers(
    launch: Any, model_store: LocalStore, png: bytes, count: Callable[[int, int], int]
) -> None:
    num_places, num_callers, seconds = 4, count(FULL_CALLERS, 64), count(20, 3)
    options = ("--services", "edgevlm", "--max-concurrent", str(num_places), "--quiet")
    server = launch(model_store.root, *options)
    memory = psutil.Process(server.process.pid).memory_info
    request = pb.GenerateRequest(model="tiny", images=[png], prompt="is it red ?", max_new_tokens=100)
    with grpc.insecure_channel(server.address) as channel:
        list(EdgeVlmServiceStub(channel).Generate(request, timeout=60))
        stub = health_pb2_grpc.HealthStub(channel)
        idle = np.quantile([health_s(stub) for _ in range(count(2000, 300))], 0.99)
        before = memory().rss
        path = "/vlmpress.edgevlm.v1.EdgeVlmService/Generate"
        program = [sys.executable, str(CALLERS), server.address, path]
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
    codes = result["codes"]
    busy = np.quantile(busy_s, 0.99)
    grown = memory().rss - before
    text = f"overload: {num_callers} callers on {num_places} places, {codes}, "
    text += f"refused {shown(result['refused_s'])}, all at once {shown(result['together_s'])}, "
    text += f"health p99 idle {1e3 * idle:.2f} busy {1e3 * busy:.2f} ms, {grown / MIB:+.1f} MiB"
    sys.stderr.write(text + "\n")
    assert set(codes) == {"OK", "RESOURCE_EXHAUSTED"}
    assert result["refused_s"]["0.99"] < WANTED_S
    # Those who begin in the same instant are refused one after the other, while they themselves take half of the time.
    assert result["together_s"]["1"] < 1
    # A short run has few checks: its 99 % are its longest.
    assert busy < (10 * idle if num_callers == FULL_CALLERS else WANTED_S)
    assert grown <= 64 * MIB
