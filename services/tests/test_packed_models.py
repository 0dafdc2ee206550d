"""quantpack's packs of edgevlm's models: through `from_pretrained`, and through edgevlm's engine."""

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForImageTextToText, AutoProcessor, LlavaForConditionalGeneration, LlavaProcessor

from edgevlm import EdgeVlmForConditionalGeneration, Engine, build_from_llava
from quantpack import QuantpackConfig, Scheme, pack, unpack
from quantpack.hf.linear import PackedLinear

PROMPTS = ("what color is the shape ?", "is it a circle ?", "is it blue ?")


@pytest.fixture(scope="module", params=["none", "cross", "decoder", "combined"])
def edge_pack(request: pytest.FixtureRequest, tiny_llava_directory: Path, tmp_path_factory: Any) -> Path:
    """A pack of an edge model of random weights whose fusion has a say."""
    torch.set_num_threads(1)
    model, processor = build_from_llava(
        LlavaForConditionalGeneration.from_pretrained(tiny_llava_directory),
        LlavaProcessor.from_pretrained(tiny_llava_directory),
        num_compressed_tokens=4,
        fusion=request.param,
    )
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.05)
    folder = tmp_path_factory.mktemp("edge")
    model.save_pretrained(folder / "model")
    processor.save_pretrained(folder / "model")
    pack(folder / "model", folder / "pack", Scheme(group_size=16))
    return folder / "pack"


def answers(engine: Engine, png: bytes) -> list[tuple[int, ...]]:
    return [
        tuple(getattr(event, "id", -1) for event in engine.generate(image, prompt, 6))
        for prompt in PROMPTS
        for image in (png, None)
    ]


def test_from_pretrained_and_the_engine_agree(edge_pack: Path, png: bytes) -> None:
    packed, info = AutoModelForImageTextToText.from_pretrained(edge_pack, output_loading_info=True)
    plain = AutoModelForImageTextToText.from_pretrained(edge_pack, quantization_config=QuantpackConfig(dequantize=True))
    assert not any(info.values())
    engine = Engine.load(edge_pack)
    for model in (packed, plain, engine.model):
        assert isinstance(model, EdgeVlmForConditionalGeneration)
        assert model.lm_head.weight is model.model.language_model.embed_tokens.weight
    assert sum(isinstance(layer, PackedLinear) for layer in packed.modules()) >= 28
    inputs = engine.prepare(png, PROMPTS[0])
    with torch.no_grad():
        expected = engine.model(**inputs).logits
        assert torch.equal(packed(**inputs).logits, expected)
        assert torch.equal(plain(**inputs).logits, expected)
    processor = AutoProcessor.from_pretrained(edge_pack)
    expected_answers = answers(engine, png)
    assert len(set(expected_answers)) > 1
    assert answers(Engine(packed, processor), png) == expected_answers
    assert answers(Engine(plain, processor), png) == expected_answers


def test_a_pack_equals_the_weights_it_unpacks_to(edge_pack: Path, tmp_path: Path, png: bytes) -> None:
    shutil.copytree(edge_pack.parent / "model", tmp_path / "model")
    (tmp_path / "model" / "model.safetensors").unlink()
    unpack(edge_pack, tmp_path / "model" / "model.safetensors")
    engine, expected = Engine.load(edge_pack), Engine.load(tmp_path / "model")
    state, expected_state = engine.model.state_dict(), expected.model.state_dict()
    assert state.keys() == expected_state.keys()
    assert all(torch.equal(state[name], tensor) for name, tensor in expected_state.items())
    assert answers(engine, png) == answers(expected, png)
