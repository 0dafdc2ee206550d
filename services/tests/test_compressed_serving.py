"""A model that was trained always compressed answers compressed, or not at all."""

import shutil
from pathlib import Path
from typing import Any

import grpc
import pytest
import torch
from transformers import AutoProcessor, LlavaForConditionalGeneration

from edgevlm.serving.engine import Engine
from edgevlm.serving.events import GeneratedToken
from stagetrain import CompressionSetting, attach
from stagetrain.attaching.saved_setting import save_compression
from vlmpress.artifact import COMPRESSION_FILE, Artifact, ExtensionMissingError, extensions
from vlmpress.artifact.v1 import artifact_pb2
from vlmpress.edgevlm.v1 import edgevlm_service_pb2 as pb
from vlmpress.edgevlm.v1.edgevlm_service_pb2_grpc import EdgeVlmServiceStub

SETTING = CompressionSetting(layer=0, stride=16)
PROMPT = "what color is the shape ?"


@pytest.fixture(scope="module")
def directory(tiny_llava_directory: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny Llava with weights large enough for an image to change its answer."""
    model = LlavaForConditionalGeneration.from_pretrained(tiny_llava_directory)
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.normal_(0, 0.5)
    made = tmp_path_factory.mktemp("large") / "llava"
    model.save_pretrained(made)
    AutoProcessor.from_pretrained(tiny_llava_directory).save_pretrained(made)
    return made


@pytest.fixture
def add_compressed(store: Any, directory: Path) -> Any:
    """Commits that Llava with a compression beside it, which leaves a single token from layer 0 on."""

    def add(text: str | None = None) -> Artifact:
        with store.draft() as draft:
            shutil.copytree(directory, draft.path, dirs_exist_ok=True)
            attachment = attach(Engine.load(directory).model)
            attachment.set(SETTING)
            save_compression(draft.path, attachment)
            if text is not None:
                (draft.path / COMPRESSION_FILE).write_text(text)
            return draft.commit(artifact_pb2.Model(model_type="llava"), producer=("test", "0"))

    return add


def token_ids(engine: Engine, png: bytes) -> list[int]:
    return [event.id for event in engine.generate(png, PROMPT, 8) if isinstance(event, GeneratedToken)]


async def test_a_served_model_compresses_as_it_was_trained_to(
    serving: Any, directory: Path, add_compressed: Any, png: bytes
) -> None:
    model = add_compressed()
    engine = Engine.load(directory)
    plain = token_ids(engine, png)
    attach(engine.model).set(SETTING)
    expected = token_ids(engine, png)
    assert expected != plain
    assert token_ids(Engine.load(model.path), png) == expected
    request = pb.GenerateRequest(model=model.digest, images=[png], prompt=PROMPT, max_new_tokens=8)
    async with serving("edgevlm") as channel:
        responses = [response async for response in EdgeVlmServiceStub(channel).Generate(request)]
    assert [response.token.id for response in responses[:-1]] == expected


async def test_what_it_keeps_must_be_whole(serving: Any, add_compressed: Any, refusal: Any, store: Any) -> None:
    model = add_compressed('{"layer": 0}')
    async with serving("edgevlm") as channel:
        code, text = await refusal(EdgeVlmServiceStub(channel).LoadModel(pb.LoadModelRequest(model=model.digest)))
    assert code is grpc.StatusCode.INVALID_ARGUMENT
    assert COMPRESSION_FILE in text
    assert str(store.root) not in text


async def test_without_stagetrain_it_is_not_served(
    serving: Any, add_model: Any, add_compressed: Any, refusal: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain, compressed = add_model(), add_compressed()
    monkeypatch.setattr(extensions, "entry_points", lambda **_: ())
    with pytest.raises(
        ExtensionMissingError, match=r"visual_compression\.json: expected vlmpress-stagetrain installed"
    ):
        Engine.load(compressed.path)
    async with serving("edgevlm") as channel:
        stub = EdgeVlmServiceStub(channel)
        code, text = await refusal(stub.LoadModel(pb.LoadModelRequest(model=compressed.digest)))
        assert code is grpc.StatusCode.FAILED_PRECONDITION
        assert "vlmpress-stagetrain" in text
        assert (await stub.LoadModel(pb.LoadModelRequest(model=plain.digest))).digest == plain.digest
