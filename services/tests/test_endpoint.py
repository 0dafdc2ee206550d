"""A request that breaks gRPC's server neither ends our server nor the calls that run."""

import asyncio
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from vlmpress.evaluation.v1 import evaluation_service_pb2
from vlmpress_services import evaluation_service
from vlmpress_services.serving.server import Server, ServerConfig

SCORE = "/vlmpress.evaluation.v1.EvaluationService/ScorePredictions"
FIELDS = [
    (b":method", b"POST"), (b":scheme", b"http"), (b":path", b"/\xff\xfe"), (b":authority", b"x"),
    (b"content-type", b"application/grpc"), (b"te", b"trailers"),
]  # fmt: skip


def frame(kind: int, flags: int, stream: int, payload: bytes = b"") -> bytes:
    return len(payload).to_bytes(3, "big") + bytes([kind, flags]) + stream.to_bytes(4, "big") + payload


async def send_path_without_utf8(address: str) -> None:
    block = b"".join(b"\0" + bytes([len(name)]) + name + bytes([len(value)]) + value for name, value in FIELDS)
    host, _, port = address.rpartition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    writer.write(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + frame(4, 0, 0) + frame(1, 4, 1, block) + frame(0, 1, 1))
    await writer.drain()
    await asyncio.wait_for(reader.read(4096), 10)
    await asyncio.sleep(0.3)
    writer.close()


async def test_a_path_that_is_no_text_ends_nothing(
    store: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    release = asyncio.Event()

    async def wait(*_: Any) -> Any:
        await release.wait()
        return evaluation_service_pb2.ScorePredictionsResponse()

    monkeypatch.setattr(evaluation_service.EvaluationService, "ScorePredictions", wait)
    server = Server(ServerConfig(listen="127.0.0.1:0", store=store.root, services=("evaluation",)))
    await server.start()
    try:
        async with grpc.aio.insecure_channel(server.address) as held_by:
            held = held_by.unary_unary(SCORE)(b"")
            await asyncio.sleep(0.2)
            for _ in range(2):
                await send_path_without_utf8(server.address)
                async with grpc.aio.insecure_channel(server.address) as channel:
                    stub = health_pb2_grpc.HealthStub(channel)
                    request = health_pb2.HealthCheckRequest()
                    answer = await stub.Check(request, timeout=10, wait_for_ready=True)
                    assert answer.status == health_pb2.HealthCheckResponse.SERVING
            assert caplog.text.count("has broken and is replaced") == 2
            release.set()
            await held
    finally:
        await server.stop(1)
