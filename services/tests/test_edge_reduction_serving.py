"""An edge model with a reduction policy in edgevlm's engine, its command and its service: a budget for each request."""

import asyncio
import io
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoTokenizer, CLIPImageProcessorPil, Siglip2ImageProcessorPil

import edgevlm.cli
import vlmpress.cli
from edgevlm import (
    EdgeModelSpec,
    EdgeVlmConfig,
    EdgeVlmError,
    EdgeVlmProcessor,
    Engine,
    ModelDirectoryError,
    RequestError,
)
from edgevlm.wire import spec_to_proto
from quantpack import Scheme, pack
from tokenreduce import ReductionPolicy
from tokenreduce.wire import policy_to_proto
from vlmpress.artifact import Artifact, write_policy
from vlmpress.edgevlm.v1 import edgevlm_service_pb2 as pb
from vlmpress.edgevlm.v1.edgevlm_service_pb2_grpc import EdgeVlmServiceStub
from vlmpress_services.clients import EdgeVlmClient
from vlmpress_services.errors import InvalidRequestError, ServiceError
from vlmpress_services.serving.server import Server, ServerConfig
from vlmpress_services.store.local import LocalStore

FUSIONS = ("none", "cross", "decoder", "combined")
TOWERS = ("clip", "siglip", "siglip2")
POLICY = ReductionPolicy(tau=0.3)
NUM_VISUAL = 36
PROMPT = "what color is the shape ?"


def picture(*, busy: bool, size: tuple[int, int] = (96, 64)) -> bytes:
    pixels = np.full((size[1], size[0], 3), 120, np.uint8)
    if busy:
        pixels = np.random.default_rng(0).integers(0, 256, pixels.shape, np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.fixture(scope="module")
def edge_directory(edge_model: Any, tiny_llava_directory: Path, tmp_path_factory: Any) -> Callable[..., Path]:
    """Model directories for every fusion and tower, each made once, with a policy beside the weights or without."""
    made: dict[tuple[Any, ...], Path] = {}

    def get(fusion: str, tower: str = "clip", policy: ReductionPolicy | None = POLICY, **changes: Any) -> Path:
        key = (fusion, tower, policy, *changes.items())
        if key not in made:
            tokenizer = AutoTokenizer.from_pretrained(tiny_llava_directory)
            pixels = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3}
            size = {"height": 48, "width": 48}
            image_processor = (
                Siglip2ImageProcessorPil(patch_size=8, max_num_patches=NUM_VISUAL, **pixels)
                if tower == "siglip2"
                else CLIPImageProcessorPil(size=size, crop_size=size, **pixels)
            )
            changes = {"image_token_id": tokenizer.convert_tokens_to_ids("<image>"), **changes}
            model = edge_model(fusion, tower, **changes)
            processor = EdgeVlmProcessor(image_processor, tokenizer, model.config.num_compressed_tokens)
            folder = made[key] = tmp_path_factory.mktemp("edge")
            model.save_pretrained(folder)
            processor.save_pretrained(folder)
            if policy is not None:
                write_policy(folder, policy_to_proto(policy))
        return made[key]

    return get


def num_seen(engine: Engine, image: bytes, limit: int | None = None) -> int:
    return int(list(engine.generate(image, PROMPT, 3, limit))[-1].num_visual_tokens)  # type: ignore[union-attr]


@pytest.mark.parametrize("tower", TOWERS)
@pytest.mark.parametrize("fusion", FUSIONS)
def test_a_plain_image_gets_fewer_tokens(edge_directory: Any, fusion: str, tower: str) -> None:
    engine = Engine.load(edge_directory(fusion, tower))
    busy, plain = num_seen(engine, picture(busy=True)), num_seen(engine, picture(busy=False))
    # 96 x 64 pixels are 7 x 5 patches of at most 36 for NaFlex; the others see a square.
    assert (busy, plain) == ((35, 6) if tower == "siglip2" else (36, 4))
    least = plain
    assert [num_seen(engine, picture(busy=True), limit) for limit in (100, busy, 20, least)] == [
        busy, busy, 12 if tower == "siglip2" else 9, least,
    ]  # fmt: skip
    with pytest.raises(RequestError, match=f"max_visual_tokens={least - 1}: "):
        num_seen(engine, picture(busy=True), least - 1)
    assert num_seen(engine, picture(busy=True)) == busy


@pytest.mark.parametrize("fusion", FUSIONS)
def test_the_engine_answers_as_generate(edge_directory: Any, fusion: str) -> None:
    engine = Engine.load(edge_directory(fusion))
    engine.eos_token_ids = frozenset()
    for limit in (None, 9):
        ids = [event.id for event in engine.generate(picture(busy=True), PROMPT, 6, limit) if hasattr(event, "id")]
        inputs = engine.prepare(picture(busy=True), PROMPT)
        output = engine.model.generate(
            **inputs, max_new_tokens=6, min_new_tokens=6, eos_token_id=-1, max_visual_tokens=limit, do_sample=False
        )
        assert output[0, inputs["input_ids"].shape[1] :].tolist() == ids


def test_a_pack_with_a_policy(edge_directory: Any, tmp_path: Path) -> None:
    source = edge_directory("combined", "siglip2")
    pack(source, tmp_path / "pack", Scheme(group_size=16))
    write_policy(tmp_path / "pack", policy_to_proto(POLICY))
    engine = Engine.load(tmp_path / "pack")
    assert [num_seen(engine, picture(busy=busy)) for busy in (True, False)] == [35, 6]
    assert num_seen(engine, picture(busy=True), 12) == 12


def test_the_command_keeps_to_a_limit(edge_directory: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "busy.png").write_bytes(picture(busy=True))
    command = ["chat", str(edge_directory("cross")), str(tmp_path / "busy.png"), "--prompt", PROMPT, "--json"]
    command += ["--max-new-tokens", "1", "--max-visual-tokens"]
    assert vlmpress.cli.run(edgevlm.cli.app, (EdgeVlmError,), [*command, "20"]) == 0
    assert json.loads(capsys.readouterr().out)["num_visual_tokens"] == 9
    assert vlmpress.cli.run(edgevlm.cli.app, (EdgeVlmError,), [*command, "3"]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert [line for line in lines if line.startswith("error: max_visual_tokens=3: ")], lines


def test_half_precision(edge_directory: Any) -> None:
    engine = Engine.load(edge_directory("combined", "siglip2"), dtype=torch.bfloat16)
    assert [num_seen(engine, picture(busy=busy)) for busy in (True, False)] == [35, 6]


def test_a_policy_beside_a_compressor_is_refused(edge_directory: Any) -> None:
    folder = edge_directory("cross", compressor="mlp", num_compressed_tokens=9)
    with pytest.raises(ModelDirectoryError, match="build the model with compressor='none'"):
        Engine.load(folder)


@pytest.fixture
def add_edge(store: LocalStore, edge_directory: Any) -> Callable[..., Artifact]:
    def add(*arguments: Any, **options: Any) -> Artifact:
        source = edge_directory(*arguments, **options)
        config = EdgeVlmConfig.from_pretrained(source)
        with store.draft() as draft:
            shutil.copytree(source, draft.path, dirs_exist_ok=True)
            return draft.commit(spec_to_proto(EdgeModelSpec.of(config)), producer=("test", "0"))

    return add


@pytest.mark.parametrize("fusion", FUSIONS)
async def test_a_budget_for_each_request(serving: Any, add_edge: Any, refusal: Any, fusion: str) -> None:
    digest = add_edge(fusion).digest
    async with serving("edgevlm") as channel:
        stub = EdgeVlmServiceStub(channel)

        def ask(image: bytes, limit: int) -> Any:
            return stub.Generate(
                pb.GenerateRequest(
                    model=digest, images=[image] * bool(image), prompt=PROMPT, max_new_tokens=2, max_visual_tokens=limit
                )
            )

        async def seen(image: bytes, limit: int = 0) -> int:
            return [response async for response in ask(image, limit)][-1].finish.num_visual_tokens

        busy, plain = picture(busy=True), picture(busy=False)
        assert [await seen(busy), await seen(plain)] == [36, 4]
        assert [await seen(busy, limit) for limit in (36, 35, 9, 4)] == [36, 9, 9, 4]
        code, text = await refusal(ask(busy, 3).read())
        assert code is grpc.StatusCode.INVALID_ARGUMENT, text
        assert "max_visual_tokens=3" in text
        # The server answers on, and the limit of one request is not the next one's.
        assert [await seen(busy), await seen(b"", 1)] == [36, 0]


async def test_the_client_hands_a_limit_on(store: LocalStore, add_edge: Any) -> None:
    digest = add_edge("none").digest
    busy = picture(busy=True)

    def ask(address: str) -> list[int]:
        with EdgeVlmClient(address) as client:
            with pytest.raises(InvalidRequestError, match="at least 1 or None, got 0"):
                client.generate(digest, busy, PROMPT, 1, 0)
            with pytest.raises(ServiceError, match="INVALID_ARGUMENT"):
                client.generate(digest, busy, PROMPT, 1, 3)
            return [client.generate(digest, busy, PROMPT, 1, limit).num_visual_tokens for limit in (None, 20)]

    server = Server(ServerConfig(listen="127.0.0.1:0", store=store.root, services=("edgevlm",)))
    await server.start()
    try:
        assert await asyncio.to_thread(ask, server.address) == [36, 9]
    finally:
        await server.stop(0.2)


async def test_a_budget_without_a_policy(serving: Any, add_edge: Any, refusal: Any) -> None:
    digest = add_edge("none", policy=None).digest
    async with serving("edgevlm") as channel:
        stub = EdgeVlmServiceStub(channel)
        fields: Any = {"model": digest, "images": [picture(busy=True)], "prompt": PROMPT, "max_new_tokens": 1}
        last = [response async for response in stub.Generate(pb.GenerateRequest(**fields, max_visual_tokens=36))][-1]
        assert last.finish.num_visual_tokens == 36
        code, text = await refusal(stub.Generate(pb.GenerateRequest(**fields, max_visual_tokens=35)).read())
        assert code is grpc.StatusCode.INVALID_ARGUMENT
        assert "expected at least 36, which the image needs" in text


async def test_a_policy_beside_a_compressor_is_refused_on_the_wire(serving: Any, add_edge: Any, refusal: Any) -> None:
    digest = add_edge("none", compressor="mlp", num_compressed_tokens=9).digest
    async with serving("edgevlm") as channel:
        code, text = await refusal(EdgeVlmServiceStub(channel).LoadModel(pb.LoadModelRequest(model=digest)))
    assert code is grpc.StatusCode.INVALID_ARGUMENT
    assert "compressor='none'" in text
