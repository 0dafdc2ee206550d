"""Many answers at a time through a real server: all come whole, whoever reads slowly, leaves, or ends the server."""

import asyncio
import signal
import time
from pathlib import Path
from typing import Any

import grpc
import pytest

from edgevlm import Engine
from vlmpress.artifact import Artifact
from vlmpress.edgevlm.v1 import edgevlm_service_pb2 as pb
from vlmpress.edgevlm.v1.edgevlm_service_pb2_grpc import EdgeVlmServiceStub
from vlmpress_services.store.local import LocalStore

NUM_STREAMS = 64
QUESTIONS = ("is it red ?", "what color is the shape ?", "is it a circle ?")


def request(number: int, png: bytes, **changes: Any) -> pb.GenerateRequest:
    """A question of its own for each number; every fourth has no image."""
    fields: dict[str, Any] = {"model": "tiny", "prompt": QUESTIONS[number % 3], "max_new_tokens": 1 + number % 23}
    return pb.GenerateRequest(**(fields | changes), images=[] if number % 4 == 3 else [png])


async def answered(stub: Any, message: pb.GenerateRequest) -> tuple[list[int], Any]:
    """Token ids and the finish of one answer."""
    *tokens, last = [response async for response in stub.Generate(message, timeout=120)]
    return [token.token.id for token in tokens], last.finish


def expected(directory: Path, messages: list[pb.GenerateRequest]) -> list[list[int]]:
    engine = Engine.load(directory)
    return [
        [event.id for event in list(engine.generate(tuple(m.images), m.prompt, m.max_new_tokens))[:-1]]  # type: ignore[union-attr]
        for m in messages
    ]


async def test_64_streams_finish_as_if_alone(server: Any, tiny: Artifact, png: bytes) -> None:
    messages = [request(number, png) for number in range(NUM_STREAMS)]
    async with grpc.aio.insecure_channel(server.address) as channel:
        stub = EdgeVlmServiceStub(channel)
        answers = await asyncio.gather(*(answered(stub, message) for message in messages))
    assert [ids for ids, _ in answers] == expected(tiny.path, messages)
    assert {finish.reason for _, finish in answers} <= {pb.FINISH_REASON_STOP, pb.FINISH_REASON_LENGTH}


async def test_streams_that_are_left_or_not_read_hold_up_nobody(server: Any, tiny: Artifact, png: bytes) -> None:
    messages = [request(number, png) for number in range(16)]
    async with grpc.aio.insecure_channel(server.address) as channel:
        stub = EdgeVlmServiceStub(channel)
        unread = [stub.Generate(request(0, png, max_new_tokens=200), timeout=120) for _ in range(8)]
        left = [stub.Generate(request(1, png, max_new_tokens=200), timeout=120) for _ in range(8)]
        for call in (*unread, *left):
            await call.read()
        for call in left:
            call.cancel()
        answers = await asyncio.gather(*(answered(stub, message) for message in messages))
        assert [ids for ids, _ in answers] == expected(tiny.path, messages)
        for call in unread:
            while (response := await call.read()) is not grpc.aio.EOF:
                last = response
            assert last.WhichOneof("event") == "finish"


async def test_a_signal_lets_running_answers_end(launch: Any, model_store: LocalStore, png: bytes) -> None:
    server = launch(model_store.root, "--services", "edgevlm")
    async with grpc.aio.insecure_channel(server.address) as channel:
        stub = EdgeVlmServiceStub(channel)
        calls = [stub.Generate(request(0, png, max_new_tokens=60)) for _ in range(16)]
        for call in calls:
            await call.read()
        server.process.send_signal(signal.SIGTERM)
        start_s = time.monotonic()
        for call in calls:
            events = []
            while (response := await call.read()) is not grpc.aio.EOF:
                events.append(response.WhichOneof("event"))
            assert events[-1:] == ["finish"]
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await answered(stub, request(0, png))
        assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
    assert await asyncio.to_thread(server.process.wait, 15) == 0
    assert time.monotonic() - start_s < 15


async def test_hostile_requests_among_good_ones(server: Any, tiny: Artifact, png: bytes) -> None:
    """Bad images, prompts and limits are refused, good requests beside them are answered, and the server lives."""
    bad: list[dict[str, Any]] = [
        {"images": [b"\x89PNG\r\n\x1a\n" + bytes(40)]}, {"images": [png[: len(png) // 2]]}, {"images": [b""]},
        {"images": [png] * 40}, {"prompt": "is it " * 300}, {"prompt": "is <image> it"}, {"max_visual_tokens": 3},
        {"sampling": {"temperature": -1}}, {"history": [{"question": "", "answer": ""}]},
    ]  # fmt: skip
    good = [request(number, png) for number in range(len(bad))]
    fields: dict[str, Any] = {"model": "tiny", "images": [png], "prompt": "is it red ?", "max_new_tokens": 4}

    async def refused(stub: Any, change: dict[str, Any]) -> Any:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await answered(stub, pb.GenerateRequest(**(fields | change)))
        return caught.value.code()

    async with grpc.aio.insecure_channel(server.address) as channel:
        stub = EdgeVlmServiceStub(channel)
        calls = [call for pair in zip((refused(stub, b) for b in bad), (answered(stub, g) for g in good), strict=True)
                 for call in pair]  # fmt: skip
        results = await asyncio.gather(*calls)
    assert set(results[::2]) == {grpc.StatusCode.INVALID_ARGUMENT}
    assert [ids for ids, _ in results[1::2]] == expected(tiny.path, good)
