"""Models that other packages had their hands on, served to many at once: everybody gets what they would get alone."""

import io
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from transformers import AutoProcessor, LlavaForConditionalGeneration, LlavaProcessor

from edgevlm import Engine, ModelDirectoryError, RequestError, build_from_llava
from edgevlm.serving.batching import Batcher
from edgevlm.serving.events import BatchEvent, Failed
from edgevlm.serving.requests import GenerationRequest
from quantpack import Scheme, pack
from stagetrain import CompressionSetting, attach
from tokenreduce import ReductionPolicy
from tokenreduce.wire import policy_to_proto
from vlmpress.artifact import write_policy

QUESTIONS = ("what color is the shape ?", "is it a circle ?", "is it blue ?", "red")


@pytest.fixture(scope="module")
def llava_directory(tiny_llava_directory: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny Llava with weights large enough for an image to change its answer."""
    torch.set_num_threads(1)
    model = LlavaForConditionalGeneration.from_pretrained(tiny_llava_directory)
    torch.manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() > 1:
                # Without positions in the tower, so that a plain image stays plain.
                parameter.normal_(0, 0 if "position" in name else 0.3)
    folder = tmp_path_factory.mktemp("large") / "llava"
    model.save_pretrained(folder)
    AutoProcessor.from_pretrained(tiny_llava_directory).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def edge_directory(llava_directory: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An edge model out of it, its fusion open."""
    llava = LlavaForConditionalGeneration.from_pretrained(llava_directory)
    model, processor = build_from_llava(
        llava, LlavaProcessor.from_pretrained(llava_directory), num_compressed_tokens=4, fusion="combined"
    )
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("gate"):
                parameter.fill_(0.5)
    folder = tmp_path_factory.mktemp("edge") / "edge"
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


def picture(number: int) -> bytes:
    """Plain for even numbers, busy for odd ones."""
    generator = torch.Generator().manual_seed(number)
    pixels = torch.randint(0, 256, (1, 1, 3) if number % 2 == 0 else (32, 32, 3), generator=generator)
    image = Image.fromarray(pixels.to(torch.uint8).numpy()).resize((40, 30))
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


def some_requests(limits: dict[int, int] | None = None) -> list[GenerationRequest]:
    return [
        GenerationRequest(
            prompt=QUESTIONS[number % len(QUESTIONS)], max_new_tokens=2 + number % 5,
            images=() if number == 3 else (picture(number),), max_visual_tokens=(limits or {}).get(number),
        )
        for number in range(7)
    ]  # fmt: skip


def alone(engine: Engine, asked: GenerationRequest) -> list[BatchEvent]:
    return list(engine.generate(asked.images, asked.prompt, asked.max_new_tokens, asked.max_visual_tokens))


def batched(engine: Engine, asked: list[GenerationRequest]) -> tuple[list[list[BatchEvent]], int]:
    """Events of each request, three at a time, and the most memory that rows had in common."""
    batcher = Batcher(engine, max_batch_size=3)
    events: dict[int, list[BatchEvent]] = {batcher.submit(engine.prepare_request(one)): [] for one in asked}
    most = 0
    while batcher.has_work:
        for handle, event in batcher.step():
            events[handle].append(event)
        most = max(most, batcher.cache_bytes)
    return list(events.values()), most


@pytest.mark.parametrize("kind", ["llava", "edge"])
@pytest.mark.parametrize("bits", [4, 3])
def test_packs(llava_directory: Path, edge_directory: Path, tmp_path: Path, kind: str, bits: int) -> None:
    pack(llava_directory if kind == "llava" else edge_directory, tmp_path / "pack", Scheme(bits=bits, group_size=16))
    engine = Engine.load(tmp_path / "pack")
    asked = some_requests()
    events, most = batched(engine, asked)
    assert events == [alone(engine, one) for one in asked]
    assert most > 0


@pytest.mark.parametrize("mode", ["residual", "literal"])
def test_a_reduction_policy(llava_directory: Path, tmp_path: Path, mode: Any) -> None:
    shutil.copytree(llava_directory, tmp_path / "model")
    write_policy(tmp_path / "model", policy_to_proto(ReductionPolicy(tau=0.1, mode=mode)))
    engine = Engine.load(tmp_path / "model")
    asked = some_requests({1: 4, 2: 8})
    expected = [alone(engine, one) for one in asked]
    events, most = batched(engine, asked)
    assert events == expected
    assert len({each[-1].num_visual_tokens for each in expected}) > 2  # type: ignore[union-attr]
    assert most > 0, "prompts are read one by one, but answers have a batch"


def test_a_limit_that_cannot_be_held_fails_alone(llava_directory: Path, tmp_path: Path) -> None:
    shutil.copytree(llava_directory, tmp_path / "model")
    write_policy(tmp_path / "model", policy_to_proto(ReductionPolicy(tau=0.1)))
    engine = Engine.load(tmp_path / "model")
    asked = some_requests({2: 1})
    events, _ = batched(engine, asked)
    (failed,) = events.pop(2)
    asked.pop(2)
    assert isinstance(failed, Failed)
    assert isinstance(failed.error, RequestError)
    assert "max_visual_tokens=1" in str(failed.error)
    assert events == [alone(engine, one) for one in asked]


@pytest.mark.parametrize("layer", [0, 1])
@pytest.mark.parametrize("kind", ["llava", "edge"])
def test_a_kept_compression(llava_directory: Path, edge_directory: Path, kind: str, layer: int) -> None:
    engine = Engine.load(llava_directory if kind == "llava" else edge_directory)
    asked = some_requests()
    plain = [alone(engine, one) for one in asked]
    attach(engine.model).set(CompressionSetting(layer=layer, stride=4))
    expected = [alone(engine, one) for one in asked]
    assert expected != plain
    events, most = batched(engine, asked)
    assert events == expected
    assert most == 0, "keys of a compressed layer belong to their own row"


def damage_pack(folder: Path, damage: str) -> None:
    weights, config = folder / "model.safetensors", folder / "config.json"
    if damage == "no weights":
        weights.unlink()
    elif damage == "half the weights":
        weights.write_bytes(weights.read_bytes()[: weights.stat().st_size // 2])
    elif damage == "no bytes":
        weights.write_bytes(b"")
    else:
        config.write_text(config.read_text().replace('"num_hidden_layers": 2', '"num_hidden_layers": 3'))


@pytest.mark.parametrize("damage", ["no weights", "half the weights", "no bytes", "other weights"])
def test_half_a_pack_is_refused(edge_directory: Path, tmp_path: Path, damage: str) -> None:
    pack(edge_directory, tmp_path / "pack", Scheme(group_size=16))
    damage_pack(tmp_path / "pack", damage)
    with pytest.raises(ModelDirectoryError, match="expected an image-text-to-text model, got: "):
        Engine.load(tmp_path / "pack")
