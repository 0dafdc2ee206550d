"""A server that is asked wrongly, and one that is asked for long: it answers, and keeps no memory of it."""

import asyncio
import itertools
import random
import socket
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import psutil
from grpc_health.v1 import health_pb2, health_pb2_grpc

from vlmpress.evaluation.v1 import evaluation_pb2, evaluation_service_pb2
from vlmpress.stagetrain.v1 import stagetrain_service_pb2
from vlmpress_services.serving.methods import SERVICES, methods_of

MIB = 1 << 20
EXPECTED = {"OK", "INVALID_ARGUMENT", "NOT_FOUND", "UNIMPLEMENTED", "FAILED_PRECONDITION", "DATA_LOSS"}
Request = tuple[str, bytes]
EVALUATION = "/vlmpress.evaluation.v1.EvaluationService/"
ARTIFACT = "/vlmpress.artifact.v1.ArtifactService/"
STAGETRAIN = "/vlmpress.stagetrain.v1.StageTrainService/"
PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
SETTINGS = b"\0\0\0\4\0\0\0\0\0"
CONNECTION_TIMEOUT_S = 1.0


def report(text: str) -> None:
    sys.stderr.write(text + "\n")


def rss_bytes(pid: int) -> int:
    """Memory of a process."""
    return int(psutil.Process(pid).memory_info().rss)


def good_score(num_predictions: int = 3) -> bytes:
    """A request that is answered."""
    rows = [
        evaluation_pb2.Prediction(index=number, question_type="other", expected="a", answer="a")
        for number in range(num_predictions)
    ]
    return evaluation_service_pb2.ScorePredictionsRequest(predictions=rows).SerializeToString()


def malformed(seed: int, num_requests: int) -> Iterator[Request]:
    """Bytes that are no message, too short, damaged or of another method; methods that do not exist."""
    draw = random.Random(seed)
    paths = sorted(methods_of(SERVICES))
    for _ in range(num_requests):
        path = draw.choice(paths)
        kind = draw.randrange(5)
        if kind == 0:
            yield path, draw.randbytes(draw.randrange(1, 200))
        elif kind == 1:
            yield path, b"\x0a" + bytes([draw.randrange(2, 120)])  # a field that ends before it is there
        elif kind == 2:
            good = bytearray(good_score())
            good[draw.randrange(len(good))] ^= 1 << draw.randrange(8)
            yield path, bytes(good)
        elif kind == 3:
            yield path + draw.choice("xyz"), draw.randbytes(10)
        else:
            yield f"/{draw.randbytes(5).hex()}/{draw.randbytes(3).hex()}", b""


def mixed(seed: int, num_requests: int) -> Iterator[Request]:
    """What a day brings: mostly answers, some refusals."""
    draw = random.Random(seed)
    plan = stagetrain_service_pb2.PlanScheduleRequest(scheme="two_stage", num_layers=32, num_visual_tokens=576)
    choices = [
        (EVALUATION + "ScorePredictions", good_score()),
        (STAGETRAIN + "PlanSchedule", plan.SerializeToString()),
        (ARTIFACT + "ListArtifacts", b""),
        (ARTIFACT + "GetManifest", b"\x0a\x04none"),
        (ARTIFACT + "ReadFile", b"\x0a\x04none"),
        (EVALUATION + "ScorePredictions", b"\x0a\x64"),
        (EVALUATION + "Nothing", b""),
        ("/grpc.health.v1.Health/Check", b""),
    ]
    for _ in range(num_requests):
        yield draw.choice(choices)


async def send_all(address: str, requests: Iterator[Request], num_at_a_time: int) -> Counter[str]:
    """Sends every request, so many at a time, and counts the codes."""
    codes: Counter[str] = Counter()
    async with grpc.aio.insecure_channel(address) as channel:

        async def send() -> None:
            for path, data in requests:
                call = channel.unary_stream(path)(data, timeout=30)
                with suppress(grpc.aio.AioRpcError):
                    while await call.read() is not grpc.aio.EOF:
                        pass
                codes[(await call.code()).name] += 1

        await asyncio.gather(*(send() for _ in range(num_at_a_time)))
    return codes


def send_garbage(address: str, seed: int, num_connections: int) -> None:
    """Opens connections that speak no gRPC: noise, other protocols, frames and headers that are wrong, silence."""
    draw = random.Random(seed)
    host, _, port = address.rpartition(":")
    short_body = _headers(b"/x/y")
    openings = [
        lambda: draw.randbytes(draw.randrange(1, 4000)),
        lambda: b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
        lambda: b"\x16\x03\x01" + draw.randbytes(200),
        lambda: PREFACE + draw.randbytes(draw.randrange(1, 4000)),
        lambda: PREFACE + SETTINGS + _frame(draw.randrange(16), draw.randrange(256), 1, draw.randbytes(40)),
        lambda: PREFACE + SETTINGS + _frame(1, 4, 1, short_body) + _frame(0, 1, 1, b"\0\0\0\0\0"),
        lambda: PREFACE + SETTINGS + _frame(1, 4, 1, _headers(b"/" + b"x" * 7000)) + _frame(0, 1, 1, b"\1\xff\xff"),
        lambda: PREFACE + SETTINGS + _frame(1, 4, 1, _headers(b"/\xff\xfe")) + _frame(0, 1, 1, b""),
        lambda: PREFACE[: draw.randrange(len(PREFACE))],
        lambda: b"",
    ]
    for number in range(num_connections):
        connection = socket.create_connection((host, int(port)), timeout=CONNECTION_TIMEOUT_S)
        with connection, suppress(OSError):
            connection.sendall(openings[number % len(openings)]())
            connection.shutdown(socket.SHUT_WR)
            connection.recv(4096)


def _frame(kind: int, flags: int, stream: int, payload: bytes) -> bytes:
    return len(payload).to_bytes(3, "big") + bytes([kind, flags]) + stream.to_bytes(4, "big") + payload


def _headers(path: bytes) -> bytes:
    fields = [(b":method", b"POST"), (b":scheme", b"http"), (b":path", path), (b":authority", b"x")]
    fields += [(b"content-type", b"application/grpc"), (b"te", b"trailers")]
    return b"".join(b"\0" + _text(name) + _text(value) for name, value in fields)


def _text(data: bytes) -> bytes:
    if len(data) < 127:
        return bytes([len(data)]) + data
    rest, out = len(data) - 127, bytearray([127])
    while rest >= 128:
        out.append(rest % 128 + 128)
        rest //= 128
    return bytes(out) + bytes([rest]) + data


def test_malformed_calls_and_garbage_connections(launch: Any, tmp_path: Path, count: Callable[[int, int], int]) -> None:
    server = launch(tmp_path / "store", "--quiet")
    num_calls, num_connections = count(50_000, 500), count(500, 27)
    asyncio.run(send_all(server.address, malformed(1, num_calls // 10), 64))
    send_garbage(server.address, 1, num_connections // 10)
    before = rss_bytes(server.process.pid)
    codes = asyncio.run(send_all(server.address, malformed(0, num_calls), 64))
    send_garbage(server.address, 0, num_connections)
    grown = rss_bytes(server.process.pid) - before
    report(f"malformed: {num_calls} calls, {num_connections} connections, {dict(codes)}, {grown / MIB:+.1f} MiB")
    assert server.process.poll() is None, "the server has ended"
    with grpc.insecure_channel(server.address) as channel:
        stub = health_pb2_grpc.HealthStub(channel)
        stub.Check(health_pb2.HealthCheckRequest(), timeout=30, wait_for_ready=True)
    assert sum(codes.values()) == num_calls
    assert set(codes) <= EXPECTED
    assert grown <= 20 * MIB


def test_mixed_calls_keep_no_memory(launch: Any, tmp_path: Path, count: Callable[[int, int], int]) -> None:
    server = launch(tmp_path / "store", "--quiet", "--services", "artifact,evaluation,stagetrain")
    num_warm, num_calls, num_steps = count(10_000, 500), count(100_000, 1_000), 20
    asyncio.run(send_all(server.address, mixed(1, num_warm), 32))
    sizes, codes = [rss_bytes(server.process.pid)], Counter[str]()
    requests = mixed(0, num_calls)
    for _ in range(num_steps):
        step = itertools.islice(requests, num_calls // num_steps)
        codes += asyncio.run(send_all(server.address, step, 32))
        sizes.append(rss_bytes(server.process.pid))
    slope = float(np.polyfit(np.arange(num_steps + 1) * (num_calls // num_steps), sizes, 1)[0])
    report(f"mixed: {dict(codes)}, {slope / 1024:+.4f} KiB a call")
    assert set(codes) == {"OK", "INVALID_ARGUMENT", "NOT_FOUND", "UNIMPLEMENTED"}
    if num_calls >= 100_000:  # over fewer calls the allocator's steps are larger than what is asked for
        assert slope < 0.1 * 1024
