"""No request ends the server: calls to methods that it does not have are refused, whatever they are called."""

import asyncio
import logging
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from vlmpress_services.serving import accepting
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
    # A frame of headers on stream 1 that ends it is the answer; the server's settings come before it.
    while (head := await reader.readexactly(9))[3:] != b"\x01\x05\0\0\0\x01":
        await reader.readexactly(int.from_bytes(head[:3], "big"))
    writer.close()


async def test_a_path_that_is_no_text_is_an_unknown_method(
    store: Any, held_scores: asyncio.Event, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "vlmpress_services")
    server = Server(ServerConfig(listen="127.0.0.1:0", store=store.root, services=("evaluation",)))
    await server.start()
    try:
        async with grpc.aio.insecure_channel(server.address) as channel:
            held = channel.unary_unary(SCORE)(b"")
            for _ in range(3):
                await asyncio.wait_for(asyncio.gather(*(send_path_without_utf8(server.address) for _ in range(8))), 10)
                await health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(), timeout=10)
            held_scores.set()
            await held
    finally:
        await server.stop(1)
    ended = [record.fields for record in caplog.records if "access" in record.name]
    assert [(call["method"], call["code"]) for call in ended] == [
        *[("unknown", "UNIMPLEMENTED")] * 24, ("evaluation.ScorePredictions", "OK"),
    ]  # fmt: skip
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]


async def test_a_server_that_ends_by_itself_says_why(store: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    async def fail(_: Any) -> None:
        raise RuntimeError("gRPC is out of calls")

    monkeypatch.setattr(accepting._KnownMethodsServer, "_request_call", fail)
    server = Server(ServerConfig(listen="127.0.0.1:0", store=store.root, services=("evaluation",)))
    await server.start()
    with pytest.raises(RuntimeError, match="gRPC is out of calls"):
        await asyncio.wait_for(server.wait_ended(), 10)
    await server.stop(0)


async def test_a_server_that_is_stopped_has_ended(store: Any) -> None:
    server = Server(ServerConfig(listen="127.0.0.1:0", store=store.root, services=("evaluation",)))
    await server.start()
    ended = asyncio.create_task(server.wait_ended())
    await server.stop(0)
    await asyncio.wait_for(ended, 10)
