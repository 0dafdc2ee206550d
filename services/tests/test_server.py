import asyncio
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from vlmpress.artifact.v1 import artifact_service_pb2, artifact_service_pb2_grpc
from vlmpress.evaluation.v1 import evaluation_service_pb2, evaluation_service_pb2_grpc
from vlmpress_services import evaluation_service
from vlmpress_services.errors import INTERNAL_TEXT, InvalidRequestError, ListenError
from vlmpress_services.serving.server import Server, ServerConfig

SCORE = "/vlmpress.evaluation.v1.EvaluationService/ScorePredictions"
READ = "/vlmpress.artifact.v1.ArtifactService/ReadFile"
REFLECT = "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo"
# Field 1, wire type 2, length 100, and nothing behind it.
MALFORMED = b"\x0a\x64"


def check(channel: grpc.aio.Channel, service: str = "") -> Any:
    return health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(service=service))


async def test_health_of_the_server_and_each_service(serving: Any, refusal: Any) -> None:
    async with serving("artifact", "evaluation") as channel:
        for name in ("", "vlmpress.artifact.v1.ArtifactService", "vlmpress.evaluation.v1.EvaluationService"):
            assert (await check(channel, name)).status == health_pb2.HealthCheckResponse.SERVING
        assert (await refusal(check(channel, "vlmpress.job.v1.JobService")))[0] is grpc.StatusCode.NOT_FOUND


@pytest.mark.parametrize(("option", "is_on"), [(None, True), (True, True), (False, False)])
async def test_reflection_lists_the_services(serving: Any, option: bool | None, is_on: bool) -> None:
    async with serving("artifact", reflection=option) as channel:
        stub = reflection_pb2_grpc.ServerReflectionStub(channel)
        if not is_on:
            # Nothing is sent: gRPC's asyncio client says INTERNAL where a stream is refused while it sends.
            with pytest.raises(grpc.aio.AioRpcError, match="UNIMPLEMENTED"):
                await stub.ServerReflectionInfo().read()
            return
        call = stub.ServerReflectionInfo(iter([reflection_pb2.ServerReflectionRequest(list_services="")]))
        response = await call.read()
        names = {service.name for service in response.list_services_response.service}
        assert names >= {"vlmpress.artifact.v1.ArtifactService", "grpc.health.v1.Health"}
        assert "vlmpress.job.v1.JobService" not in names


async def test_malformed_requests_are_invalid_arguments(serving: Any, refusal: Any) -> None:
    async with serving("artifact", "evaluation") as channel:
        code, text = await refusal(channel.unary_unary(SCORE)(MALFORMED))
        assert (code, text) == (
            grpc.StatusCode.INVALID_ARGUMENT, "request: expected a protobuf message, got 2 other bytes",
        )  # fmt: skip
        assert (await refusal(channel.unary_stream(READ)(MALFORMED).read()))[0] is grpc.StatusCode.INVALID_ARGUMENT
        call = channel.stream_stream(REFLECT)(iter([MALFORMED]))
        assert (await refusal(call.read()))[0] is grpc.StatusCode.INVALID_ARGUMENT
        health = channel.unary_unary("/grpc.health.v1.Health/Check")(MALFORMED)
        assert (await refusal(health))[0] is grpc.StatusCode.INVALID_ARGUMENT


async def test_unknown_methods_are_unimplemented(serving: Any, refusal: Any) -> None:
    async with serving("evaluation") as channel:
        for method in (SCORE + "s", READ, "/x/y"):
            assert (await refusal(channel.unary_unary(method)(b"")))[0] is grpc.StatusCode.UNIMPLEMENTED


async def test_too_large_a_request_is_refused(serving: Any, refusal: Any) -> None:
    async with serving("evaluation") as channel:
        code, _ = await refusal(channel.unary_unary(SCORE)(b"x" * (17 << 20)))
        assert code is grpc.StatusCode.RESOURCE_EXHAUSTED


async def test_an_unexpected_error_tells_the_client_nothing(
    serving: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def break_down(_: Any) -> None:
        raise RuntimeError("secret of the house")

    monkeypatch.setattr(evaluation_service, "score", break_down)
    async with serving("evaluation") as channel:
        stub = evaluation_service_pb2_grpc.EvaluationServiceStub(channel)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await stub.ScorePredictions(evaluation_service_pb2.ScorePredictionsRequest())
    assert caught.value.code() is grpc.StatusCode.INTERNAL
    assert caught.value.details() == INTERNAL_TEXT
    request_id = dict(caught.value.trailing_metadata() or ())["x-request-id"]
    assert str(request_id) in caplog.text
    assert "secret of the house" in caplog.text


async def test_an_error_text_does_not_name_the_store_s_place(serving: Any, store: Any, add_log: Any) -> None:
    artifact = add_log()
    (artifact.path / "manifest.json").write_text("{}")
    async with serving("artifact") as channel:
        stub = artifact_service_pb2_grpc.ArtifactServiceStub(channel)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await stub.GetManifest(artifact_service_pb2.GetManifestRequest(artifact=artifact.digest))
    assert caught.value.code() is grpc.StatusCode.DATA_LOSS
    assert str(store.root) not in (caught.value.details() or "")
    assert "store/artifacts/" in (caught.value.details() or "")


async def test_a_store_in_the_current_folder_spoils_no_error_text(
    add_log: Any, store: Any, monkeypatch: pytest.MonkeyPatch, refusal: Any
) -> None:
    add_log()
    monkeypatch.chdir(store.root)
    server = Server(ServerConfig(listen="127.0.0.1:0", store=Path(), services=("artifact",)))
    await server.start()
    async with grpc.aio.insecure_channel(server.address) as channel:
        stub = artifact_service_pb2_grpc.ArtifactServiceStub(channel)
        _, text = await refusal(stub.GetManifest(artifact_service_pb2.GetManifestRequest(artifact="a.b")))
    await server.stop(0)
    assert text == "artifact 'a.b': no such tag in the store"


async def test_overload_is_refused_at_once_while_health_answers(
    serving: Any, refusal: Any, held_scores: asyncio.Event
) -> None:
    request = evaluation_service_pb2.ScorePredictionsRequest()
    async with serving("evaluation", max_concurrent=2) as channel:
        stub = evaluation_service_pb2_grpc.EvaluationServiceStub(channel)
        held = [stub.ScorePredictions(request) for _ in range(2)]
        await asyncio.sleep(0.1)
        code, text = await refusal(stub.ScorePredictions(request, timeout=1))
        assert code is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert "2 calls" in text
        assert (await check(channel)).status == health_pb2.HealthCheckResponse.SERVING
        held_scores.set()
        await asyncio.gather(*held)
        await stub.ScorePredictions(request)


async def test_a_cancelled_call_gives_its_place_back(serving: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    async def never(*_: Any) -> AsyncIterator[Any]:
        await asyncio.Event().wait()
        yield

    from vlmpress_services import artifact_service

    monkeypatch.setattr(artifact_service.ArtifactService, "ReadFile", never)
    async with serving("artifact", max_concurrent=1) as channel:
        stub = artifact_service_pb2_grpc.ArtifactServiceStub(channel)
        call = stub.ReadFile(artifact_service_pb2.ReadFileRequest())
        await asyncio.sleep(0.1)
        call.cancel()
        await asyncio.sleep(0.1)
        assert list((await stub.ListArtifacts(artifact_service_pb2.ListArtifactsRequest())).artifacts) == []


async def test_stopping_says_not_serving_and_lets_running_calls_end(
    store: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def slow(*_: Any) -> Any:
        await asyncio.sleep(0.3)
        return evaluation_service_pb2.ScorePredictionsResponse()

    monkeypatch.setattr(evaluation_service.EvaluationService, "ScorePredictions", slow)
    server = Server(ServerConfig(listen="127.0.0.1:0", store=store.root, services=("evaluation",)))
    await server.start()
    async with grpc.aio.insecure_channel(server.address) as channel:
        watch = health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest(service=""))
        assert (await watch.read()).status == health_pb2.HealthCheckResponse.SERVING
        call = evaluation_service_pb2_grpc.EvaluationServiceStub(channel).ScorePredictions(
            evaluation_service_pb2.ScorePredictionsRequest()
        )
        await asyncio.sleep(0.1)
        stop = asyncio.create_task(server.stop(1))
        assert (await watch.read()).status == health_pb2.HealthCheckResponse.NOT_SERVING
        await call
        watch.cancel()
        await stop


async def test_a_taken_address_is_a_listen_error(store: Any) -> None:
    first = Server(ServerConfig(listen="127.0.0.1:0", store=store.root, services=("evaluation",)))
    await first.start()
    second = Server(ServerConfig(listen=first.address, store=store.root, services=("evaluation",)))
    with pytest.raises(ListenError, match=first.address):
        await second.start()
    await second.stop(0)
    await first.stop(0)


@pytest.mark.parametrize("listen", ["", "localhost", ":80", "127.0.0.1:x", "127.0.0.1:99999", "127.0.0.1:-1"])
def test_bad_addresses_are_refused(tmp_path: Path, listen: str) -> None:
    with pytest.raises(InvalidRequestError, match="HOST:PORT"):
        ServerConfig(listen=listen, store=tmp_path, services=("artifact",))


@pytest.mark.parametrize("change", [{"max_concurrent": 0}, {"max_models": 0}, {"services": ()}])
def test_bad_limits_are_refused(tmp_path: Path, change: dict[str, Any]) -> None:
    settings: dict[str, Any] = {"listen": "127.0.0.1:0", "store": tmp_path, "services": ("artifact",), **change}
    with pytest.raises(InvalidRequestError):
        ServerConfig(**settings)


EMPTY_CALLS: list[Callable[[grpc.aio.Channel], Any]] = [
    lambda channel: channel.unary_unary(SCORE)(b""),
    lambda channel: channel.unary_unary("/vlmpress.artifact.v1.ArtifactService/GetManifest")(b""),
    lambda channel: channel.unary_unary("/vlmpress.artifact.v1.ArtifactService/VerifyArtifact")(b""),
    lambda channel: channel.unary_stream(READ)(b"").read(),
]


@pytest.mark.parametrize("call", EMPTY_CALLS)
async def test_empty_requests_are_refused(serving: Any, refusal: Any, call: Callable[[grpc.aio.Channel], Any]) -> None:
    async with serving("artifact", "evaluation") as channel:
        assert (await refusal(call(channel)))[0] in (grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.NOT_FOUND)
