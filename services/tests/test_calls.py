"""Request ids, details of errors, deadlines and limits of single methods, as a client sees them."""

import asyncio
import json
import logging
from typing import Any

import grpc
import pytest
from google.rpc import error_details_pb2, status_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc

from vlmpress.evaluation.v1 import evaluation_pb2, evaluation_service_pb2
from vlmpress_services import evaluation_service
from vlmpress_services.serving.configuration import MethodConfig
from vlmpress_services.serving.failures import DETAILS_KEY
from vlmpress_services.serving.logs import JsonFormatter

SCORE = "/vlmpress.evaluation.v1.EvaluationService/ScorePredictions"
READ = "/vlmpress.artifact.v1.ArtifactService/ReadFile"
GET = "/vlmpress.artifact.v1.ArtifactService/GetManifest"
MALFORMED = b"\x0a\x64"
ONE = evaluation_service_pb2.ScorePredictionsRequest(
    predictions=[evaluation_pb2.Prediction(question_type="other", expected="a", answer="a")]
).SerializeToString()


async def failed(call: Any) -> grpc.aio.AioRpcError:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    return caught.value


def details(error: grpc.aio.AioRpcError) -> tuple[error_details_pb2.ErrorInfo, error_details_pb2.RetryInfo | None]:
    status = status_pb2.Status.FromString(dict(error.trailing_metadata() or ())[DETAILS_KEY])
    assert status.code == error.code().value[0]
    assert status.message == error.details()
    info, retry = error_details_pb2.ErrorInfo(), error_details_pb2.RetryInfo()
    assert status.details[0].Unpack(info)
    return info, retry if len(status.details) > 1 and status.details[1].Unpack(retry) else None


@pytest.mark.parametrize(
    ("method", "data", "code", "reason"),
    [
        (SCORE, MALFORMED, grpc.StatusCode.INVALID_ARGUMENT, "INVALID_REQUEST"),
        (SCORE, b"\0" * (17 << 20), grpc.StatusCode.RESOURCE_EXHAUSTED, "REQUEST_TOO_LARGE"),
        (GET, b"\x0a\x04none", grpc.StatusCode.NOT_FOUND, "NOT_FOUND"),
        (SCORE + "s", b"", grpc.StatusCode.UNIMPLEMENTED, "UNKNOWN_METHOD"),
        ("/x/y", b"", grpc.StatusCode.UNIMPLEMENTED, "UNKNOWN_METHOD"),
        ("/grpc.health.v1.Health/Check", MALFORMED, grpc.StatusCode.INVALID_ARGUMENT, "INVALID_REQUEST"),
    ],
)
async def test_every_error_has_its_reason(
    serving: Any, method: str, data: bytes, code: grpc.StatusCode, reason: str
) -> None:
    async with serving("artifact", "evaluation") as channel:
        error = await failed(channel.unary_unary(method)(data, metadata=(("x-request-id", "mine-1"),)))
    info, retry = details(error)
    assert (error.code(), info.reason, info.domain, retry) == (code, reason, "vlmpress", None)
    assert dict(error.trailing_metadata() or ())["x-request-id"] == "mine-1"


async def test_an_unexpected_error_has_details_that_tell_nothing(serving: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def break_down(_: Any) -> None:
        raise RuntimeError("secret of the house")

    monkeypatch.setattr(evaluation_service, "score", break_down)
    async with serving("evaluation") as channel:
        error = await failed(channel.unary_unary(SCORE)(ONE))
    assert details(error)[0].reason == "INTERNAL"
    assert b"secret" not in dict(error.trailing_metadata() or ())[DETAILS_KEY]


async def test_a_caller_who_sends_nothing_gets_an_error(serving: Any) -> None:
    async with serving("artifact", "evaluation") as channel:
        error = await failed(channel.stream_unary(SCORE)(iter([])))
        assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
        assert "got none" in (error.details() or "")
        assert (await failed(channel.stream_stream(READ)(iter([])).read())).code() is grpc.StatusCode.INVALID_ARGUMENT


@pytest.mark.parametrize(
    ("sent", "is_kept"), [("abc-1.2_X", True), ("x" * 64, True), ("x" * 65, False), ("a b", False), ("", False)]
)
async def test_an_answer_carries_the_request_id(serving: Any, sent: str, is_kept: bool) -> None:
    async with serving("evaluation") as channel:
        call = channel.unary_unary(SCORE)(ONE, metadata=(("x-request-id", sent),))
        await call
        got = dict(await call.trailing_metadata())["x-request-id"]
    assert (got == sent) is is_kept
    assert is_kept or len(got) == 32


async def test_one_line_of_the_log_for_each_call(
    serving: Any, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    caplog.set_level(logging.INFO, "vlmpress_services")
    monkeypatch.setattr(caplog.handler, "formatter", JsonFormatter())
    async with serving("evaluation") as channel:
        await channel.unary_unary(SCORE)(ONE, metadata=(("x-request-id", "good"),))
        await failed(channel.unary_unary(SCORE)(MALFORMED, metadata=(("x-request-id", "bad"),)))
        await health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest())
    lines = [line for line in map(json.loads, caplog.text.splitlines()) if "access" in line["logger"]]
    assert [(line["request_id"], line["method"], line["code"]) for line in lines] == [
        ("good", "evaluation.ScorePredictions", "OK"),
        ("bad", "evaluation.ScorePredictions", "INVALID_ARGUMENT"),
    ]
    assert lines[0]["received_bytes"] == len(ONE)
    assert lines[0]["sent_bytes"] > 0
    assert 0 <= lines[0]["seconds"] < 60


async def test_overload_says_when_to_ask_again(serving: Any, held_scores: asyncio.Event) -> None:
    async with serving("evaluation", max_concurrent=1) as channel:
        held = channel.unary_unary(SCORE)(ONE)
        await asyncio.sleep(0.1)
        info, retry = details(await failed(channel.unary_unary(SCORE)(ONE)))
        assert info.reason == "OVERLOADED"
        assert retry is not None
        assert retry.retry_delay.seconds >= 1
        held_scores.set()
        await held


async def test_a_method_has_a_limit_of_its_own(serving: Any, held_scores: asyncio.Event) -> None:
    methods = {"evaluation.ScorePredictions": MethodConfig(max_concurrent=1, max_request_bytes=100)}
    async with serving("artifact", "evaluation", methods=methods) as channel:
        held = channel.unary_unary(SCORE)(ONE)
        await asyncio.sleep(0.1)
        error = await failed(channel.unary_unary(SCORE)(ONE))
        assert error.details() == "server busy: 1 calls of evaluation.ScorePredictions are running"
        assert (await failed(channel.unary_unary(GET)(b""))).code() is not grpc.StatusCode.RESOURCE_EXHAUSTED
        held_scores.set()
        await held
        error = await failed(channel.unary_unary(SCORE)(b"\0" * 101))
        assert error.details() == "request: expected at most 100 bytes, got 101"


async def test_a_larger_limit_of_one_method_raises_no_other(serving: Any) -> None:
    methods = {"evaluation.ScorePredictions": MethodConfig(max_request_bytes=3000)}
    async with serving("artifact", "evaluation", methods=methods, max_request_bytes=1000) as channel:
        assert (await failed(channel.unary_unary(SCORE)(b"\0" * 2000))).code() is grpc.StatusCode.INVALID_ARGUMENT
        assert (await failed(channel.unary_unary(GET)(b"\0" * 2000))).code() is grpc.StatusCode.RESOURCE_EXHAUSTED


@pytest.mark.parametrize(("asked_s", "limits"), [(None, (0.2, 0)), (30, (0, 0.2)), (None, (0, 0.2))])
async def test_a_call_ends_when_the_servers_limit_is_over(
    serving: Any, held_scores: asyncio.Event, asked_s: float | None, limits: tuple[float, float]
) -> None:
    async with serving("evaluation", default_timeout_s=limits[0], max_timeout_s=limits[1]) as channel:
        error = await failed(channel.unary_unary(SCORE)(ONE, timeout=asked_s))
    assert error.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    assert details(error)[0].reason == "TIME_LIMIT"
    assert "0.2 s" in (error.details() or "")


async def test_a_slow_sender_is_under_the_limit_too(serving: Any) -> None:
    async with serving("evaluation", default_timeout_s=0.2) as channel:
        call = channel.stream_unary(SCORE)()
        assert details(await failed(call))[0].reason == "TIME_LIMIT"


async def test_an_exempt_method_and_a_health_watch_stay_open(serving: Any, held_scores: asyncio.Event) -> None:
    methods = {"evaluation.ScorePredictions": MethodConfig(default_timeout_s=0, max_timeout_s=0)}
    async with serving("evaluation", default_timeout_s=0.1, max_timeout_s=0.1, methods=methods) as channel:
        watch = health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest(service=""))
        await watch.read()
        held = channel.unary_unary(SCORE)(ONE)
        await asyncio.sleep(0.4)
        assert not held.done()
        assert not watch.done()
        held_scores.set()
        await held
        watch.cancel()


async def test_a_handlers_own_timeout_is_not_the_servers(serving: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    async def give_up(*_: Any) -> Any:
        raise TimeoutError("of its own")

    monkeypatch.setattr(evaluation_service.EvaluationService, "ScorePredictions", give_up)
    async with serving("evaluation") as channel:
        assert (await failed(channel.unary_unary(SCORE)(ONE))).code() is grpc.StatusCode.INTERNAL
