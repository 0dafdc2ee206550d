import asyncio
from typing import Any

import grpc
import pytest

from edgevlm.serving.engine import Engine
from vlmpress.edgevlm.v1 import edgevlm_service_pb2 as pb
from vlmpress.edgevlm.v1.edgevlm_service_pb2_grpc import EdgeVlmServiceStub


async def test_a_streamed_answer_is_the_engine_s(serving: Any, add_model: Any, png: bytes) -> None:
    artifact = add_model()
    expected = list(Engine.load(artifact.path).generate(png, "is it red ?", 6))
    async with serving("edgevlm") as channel:
        stub = EdgeVlmServiceStub(channel)
        info = await stub.LoadModel(pb.LoadModelRequest(model=artifact.digest))
        assert (info.digest, info.model_type) == (artifact.digest, "llava")
        assert info.num_params == Engine.load(artifact.path).num_params
        request = pb.GenerateRequest(model=artifact.digest, image=png, prompt="is it red ?", max_new_tokens=6)
        responses = [response async for response in stub.Generate(request)]
    assert [response.WhichOneof("event") for response in responses] == ["token"] * (len(expected) - 1) + ["finish"]
    assert [response.token.id for response in responses[:-1]] == [event.id for event in expected[:-1]]
    finish = responses[-1].finish
    assert finish.text == expected[-1].text == "".join(response.token.text for response in responses)
    assert finish.num_visual_tokens == 16
    assert finish.num_generated_tokens == len(expected) - 1


async def test_many_at_a_time_get_their_own_answers(serving: Any, store: Any, add_model: Any, png: bytes) -> None:
    store.tag("it", add_model().digest)
    async with serving("edgevlm") as channel:
        stub = EdgeVlmServiceStub(channel)

        async def ask(image: bytes) -> tuple[int, str]:
            request = pb.GenerateRequest(model="it", image=image, prompt="is it red ?", max_new_tokens=4)
            last = [response async for response in stub.Generate(request)][-1].finish
            return last.num_visual_tokens, last.text

        alone = {image: await ask(image) for image in (png, b"")}
        assert [visual for visual, _ in alone.values()] == [16, 0]
        images = [png, b""] * 6
        assert await asyncio.gather(*map(ask, images)) == [alone[image] for image in images]


@pytest.mark.parametrize(
    "change",
    [{"model": ""}, {"prompt": " "}, {"max_new_tokens": 0}, {"image": b"not an image"}, {"prompt": "a <image> b"}],
)
async def test_bad_requests_are_invalid_arguments(
    serving: Any, store: Any, add_model: Any, png: bytes, refusal: Any, change: dict[str, Any]
) -> None:
    store.tag("it", add_model().digest)
    fields: dict[str, Any] = {"model": "it", "image": png, "prompt": "is it red ?", "max_new_tokens": 2, **change}
    async with serving("edgevlm") as channel:
        code, text = await refusal(EdgeVlmServiceStub(channel).Generate(pb.GenerateRequest(**fields)).read())
        assert code is grpc.StatusCode.INVALID_ARGUMENT, text


async def test_a_cancelled_answer_ends_generation(
    serving: Any, store: Any, add_model: Any, png: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.tag("it", add_model().digest)
    made = []
    original = Engine.generate

    def slow(self: Engine, *arguments: Any) -> Any:
        import time

        for event in original(self, *arguments):
            time.sleep(0.05)
            made.append(event)
            yield event

    monkeypatch.setattr(Engine, "generate", slow)
    monkeypatch.setattr("edgevlm.serving.engine._eos_token_ids", lambda *_: frozenset())
    async with serving("edgevlm") as channel:
        request = pb.GenerateRequest(model="it", image=png, prompt="is it red ?", max_new_tokens=100)
        call = EdgeVlmServiceStub(channel).Generate(request)
        await call.read()
        call.cancel()
        await asyncio.sleep(0.3)
        num_made = len(made)
        assert num_made < 10
        await asyncio.sleep(0.2)
        assert len(made) == num_made


async def test_a_directory_without_a_model_is_refused(serving: Any, store: Any, refusal: Any) -> None:
    from vlmpress.artifact.v1 import artifact_pb2

    with store.draft() as draft:
        (draft.path / "config.json").write_text("{}")
        artifact = draft.commit(artifact_pb2.Model(model_type="t"), producer=("test", "0"))
    async with serving("edgevlm") as channel:
        code, text = await refusal(EdgeVlmServiceStub(channel).LoadModel(pb.LoadModelRequest(model=artifact.digest)))
        assert code in (grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.FAILED_PRECONDITION), text
        assert str(store.root) not in text
