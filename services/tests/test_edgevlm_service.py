import asyncio
import time
from typing import Any

import grpc
import pytest

from edgevlm.serving.batching import Batcher
from edgevlm.serving.engine import Engine
from edgevlm.serving.requests import Sampling, Turn
from vlmpress.edgevlm.v1 import edgevlm_service_pb2 as pb
from vlmpress.edgevlm.v1.edgevlm_service_pb2_grpc import EdgeVlmServiceStub
from vlmpress_services.errors import INTERNAL_TEXT
from vlmpress_services.serving.generation import GenerationLoop


async def test_a_streamed_answer_is_the_engine_s(serving: Any, add_model: Any, png: bytes) -> None:
    artifact = add_model()
    expected = list(Engine.load(artifact.path).generate(png, "is it red ?", 6))
    async with serving("edgevlm") as channel:
        stub = EdgeVlmServiceStub(channel)
        info = await stub.LoadModel(pb.LoadModelRequest(model=artifact.digest))
        assert (info.digest, info.model_type) == (artifact.digest, "llava")
        assert info.num_params == Engine.load(artifact.path).num_params
        request = pb.GenerateRequest(model=artifact.digest, images=[png], prompt="is it red ?", max_new_tokens=6)
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
            request = pb.GenerateRequest(
                model="it", images=[image] * bool(image), prompt="is it red ?", max_new_tokens=4
            )
            last = [response async for response in stub.Generate(request)][-1].finish
            return last.num_visual_tokens, last.text

        alone = {image: await ask(image) for image in (png, b"")}
        assert [visual for visual, _ in alone.values()] == [16, 0]
        images = [png, b""] * 6
        assert await asyncio.gather(*map(ask, images)) == [alone[image] for image in images]


@pytest.mark.parametrize(
    "change",
    [
        {"model": ""}, {"prompt": " "}, {"max_new_tokens": 0}, {"prompt": "a <image> b"}, {"prompt": "is it " * 500},
        {"images": [b"not an image"]}, {"images": [b""]}, {"images": [b"x"] * 100}, {"sampling": {"temperature": -1}},
        {"history": [{"question": "is it blue ?", "answer": "no", "num_images": 2}]},
    ],
)  # fmt: skip
async def test_bad_requests_are_invalid_arguments(
    serving: Any, store: Any, add_model: Any, png: bytes, refusal: Any, change: dict[str, Any]
) -> None:
    store.tag("it", add_model().digest)
    fields: dict[str, Any] = {"model": "it", "images": [png], "prompt": "is it red ?", "max_new_tokens": 2, **change}
    async with serving("edgevlm") as channel:
        code, text = await refusal(EdgeVlmServiceStub(channel).Generate(pb.GenerateRequest(**fields)).read())
        assert code is grpc.StatusCode.INVALID_ARGUMENT, text


@pytest.fixture
def slow_steps(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Makes answers endless and every step of a batch last 20 ms; running requests after each step."""
    running: list[int] = []
    original = Batcher.step

    def slow(self: Batcher) -> Any:
        time.sleep(0.02)
        events = original(self)
        running.append(self.num_running)
        return events

    monkeypatch.setattr(Batcher, "step", slow)
    monkeypatch.setattr("edgevlm.serving.loaded_model._eos_token_ids", lambda *_: frozenset())
    return running


def long_request(png: bytes, **fields: Any) -> pb.GenerateRequest:
    return pb.GenerateRequest(model="it", images=[png], prompt="is it red ?", max_new_tokens=200, **fields)


async def test_a_cancelled_answer_frees_its_slot(
    serving: Any, store: Any, add_model: Any, png: bytes, slow_steps: list[int]
) -> None:
    store.tag("it", add_model().digest)
    async with serving("edgevlm") as channel:
        stub = EdgeVlmServiceStub(channel)
        calls = [stub.Generate(long_request(png)) for _ in range(3)]
        for call in calls:
            await call.read()
        assert slow_steps[-1] == 3
        calls[0].cancel()
        await asyncio.sleep(0.2)
        assert slow_steps[-1] == 2
        for call in calls[1:]:
            call.cancel()
        await asyncio.sleep(0.2)
        num_steps = len(slow_steps)
        await asyncio.sleep(0.1)
        assert len(slow_steps) == num_steps, "nobody waits, and still the model runs"


async def test_the_answer_ends_before_the_call_s_deadline(
    serving: Any, store: Any, add_model: Any, png: bytes, slow_steps: list[int]
) -> None:
    store.tag("it", add_model().digest)
    async with serving("edgevlm") as channel:
        stub = EdgeVlmServiceStub(channel)
        await stub.LoadModel(pb.LoadModelRequest(model="it"))
        calls = (
            stub.Generate(long_request(png), timeout=0.6),
            stub.Generate(long_request(png, timeout_ms=500)),
            stub.Generate(long_request(png, timeout_ms=300), timeout=100),
        )
        ends = []
        for call in calls:
            *tokens, last = [response async for response in call]
            assert last.finish.reason == pb.FINISH_REASON_DEADLINE
            assert last.finish.num_generated_tokens == len(tokens)
            ends.append(len(tokens))
        assert 0 < ends[2] < ends[0] < 40


async def test_a_slow_reader_holds_up_nobody(
    serving: Any, store: Any, add_model: Any, png: bytes, slow_steps: list[int]
) -> None:
    store.tag("it", add_model().digest)
    async with serving("edgevlm") as channel:
        stub = EdgeVlmServiceStub(channel)
        request = long_request(png)
        request.max_new_tokens = 80
        slow = stub.Generate(request)
        await slow.read()
        other = stub.Generate(pb.GenerateRequest(model="it", prompt="is it red ?", max_new_tokens=9))
        assert len([response async for response in other]) == 10
        assert len(slow_steps) < 60, "the other waited for the slow one"
        rest: list[Any] = [await slow.read() for _ in range(80)]
        assert rest[-1].WhichOneof("event") == "finish"
        assert await slow.read() is grpc.aio.EOF


async def test_more_streams_than_the_limit_are_refused(
    serving: Any, store: Any, add_model: Any, png: bytes, refusal: Any, slow_steps: list[int],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr(GenerationLoop.__init__, "__defaults__", (2,))
    store.tag("it", add_model().digest)
    async with serving("edgevlm") as channel:
        stub = EdgeVlmServiceStub(channel)
        calls = [stub.Generate(long_request(png)) for _ in range(2)]
        for call in calls:
            await call.read()
        code, text = await refusal(stub.Generate(long_request(png)).read())
        assert code is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert "2 calls" in text
        calls[0].cancel()
        await asyncio.sleep(0.2)
        assert await stub.Generate(long_request(png)).read()


async def test_a_conversation_with_images_is_the_engine_s(serving: Any, add_model: Any, png: bytes) -> None:
    artifact = add_model()
    turns: list[dict[str, Any]] = [
        {"question": "is it red ?", "answer": "yes", "num_images": 1},
        {"question": "is it blue ?", "answer": "no"},
    ]
    engine, history = Engine.load(artifact.path), [Turn(**turn) for turn in turns]
    drawn = Sampling(temperature=2, seed=3)
    expected: list[Any] = list(engine.generate([png] * 3, "is it a circle ?", 4, history=history, sampling=drawn))
    async with serving("edgevlm") as channel:
        request = pb.GenerateRequest(
            model=artifact.digest, images=[png] * 3, prompt="is it a circle ?", max_new_tokens=4, history=turns,
            sampling={"temperature": 2, "seed": 3},
        )  # fmt: skip
        *tokens, last = [response async for response in EdgeVlmServiceStub(channel).Generate(request)]
    assert [token.token.id for token in tokens] == [event.id for event in expected[:-1]]
    assert last.finish.num_visual_tokens == 48
    assert last.finish.num_prompt_tokens == expected[-1].num_prompt_tokens


async def test_a_step_that_fails_fails_its_calls_and_no_later_one(
    serving: Any, store: Any, add_model: Any, png: bytes, monkeypatch: pytest.MonkeyPatch, refusal: Any
) -> None:
    store.tag("it", add_model().digest)
    request = pb.GenerateRequest(model="it", images=[png], prompt="is it red ?", max_new_tokens=2)

    def broken(self: Batcher) -> Any:
        raise RuntimeError("secret of the house")

    async with serving("edgevlm") as channel:
        stub = EdgeVlmServiceStub(channel)
        with monkeypatch.context() as patch:
            patch.setattr(Batcher, "step", broken)
            code, text = await refusal(stub.Generate(request).read())
        assert (code, text) == (grpc.StatusCode.INTERNAL, INTERNAL_TEXT)
        assert len([response async for response in stub.Generate(request)]) >= 2


async def test_a_directory_without_a_model_is_refused(serving: Any, store: Any, refusal: Any) -> None:
    from vlmpress.artifact.v1 import artifact_pb2

    with store.draft() as draft:
        (draft.path / "config.json").write_text("{}")
        artifact = draft.commit(artifact_pb2.Model(model_type="t"), producer=("test", "0"))
    async with serving("edgevlm") as channel:
        code, text = await refusal(EdgeVlmServiceStub(channel).LoadModel(pb.LoadModelRequest(model=artifact.digest)))
        assert code in (grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.FAILED_PRECONDITION), text
        assert str(store.root) not in text
