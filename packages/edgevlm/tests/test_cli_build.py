"""`edgevlm build` from saved encoders and language models."""

import json

import pytest
import torch
from transformers import (
    AutoModelForImageTextToText,
    AutoProcessor,
    CLIPConfig,
    CLIPModel,
    CLIPTextConfig,
    LlamaForCausalLM,
    Qwen2ForCausalLM,
    Siglip2ImageProcessorPil,
    Siglip2VisionModel,
    SiglipImageProcessorPil,
    SiglipVisionModel,
)

import vlmpress.cli
from edgevlm import EdgeVlmForConditionalGeneration, EdgeVlmProcessor, cli
from edgevlm.errors import EdgeVlmError

QWEN_LIKE = (
    "{%- for message in messages %}{{- '<s>' + message.role + ' ' + message.content + '\\n' }}{%- endfor %}"
    "{%- if add_generation_prompt %}{{- 'ASSISTANT' }}{%- endif %}"
)


def run(*arguments):
    return vlmpress.cli.run(cli.app, (EdgeVlmError,), [str(argument) for argument in arguments])


def save_vision(tiny, kind, directory):
    if kind == "clip":
        text = CLIPTextConfig(hidden_size=16, intermediate_size=24, num_hidden_layers=1, num_attention_heads=2)
        CLIPModel(CLIPConfig(text_config=text.to_dict(), vision_config=tiny.vision_config().to_dict())).save_pretrained(
            directory, max_shard_size="20KB"
        )
        tiny.clip_image_processor().save_pretrained(directory)
    elif kind == "siglip":
        SiglipVisionModel(tiny.vision_config("siglip")).save_pretrained(directory)
        SiglipImageProcessorPil(size={"height": 32, "width": 32}).save_pretrained(directory)
    else:
        Siglip2VisionModel(tiny.vision_config("siglip2")).save_pretrained(directory)
        Siglip2ImageProcessorPil(patch_size=8, max_num_patches=16).save_pretrained(directory)


def save_llm(tiny, kind, directory):
    model_class = {"llama": LlamaForCausalLM, "qwen2": Qwen2ForCausalLM}[kind]
    model_class(tiny.text_config(kind)).save_pretrained(directory, max_shard_size="20KB")
    tokenizer = tiny.tokenizer()
    tokenizer.chat_template = QWEN_LIKE
    tokenizer.save_pretrained(directory)


@pytest.fixture
def parts(tiny, tmp_path):
    save_vision(tiny, "clip", tmp_path / "vision")
    save_llm(tiny, "llama", tmp_path / "llm")
    return ("build", "--vision", tmp_path / "vision", "--llm", tmp_path / "llm")


@pytest.mark.parametrize("llm", ["llama", "qwen2"])
@pytest.mark.parametrize("vision", ["clip", "siglip", "siglip2"])
def test_every_encoder_with_every_language_model(tiny, tmp_path, vision, llm):
    save_vision(tiny, vision, tmp_path / "vision")
    save_llm(tiny, llm, tmp_path / "llm")
    out = tmp_path / "edge"
    arguments = ("build", "--vision", tmp_path / "vision", "--llm", tmp_path / "llm", "--out", out)
    assert run(*arguments, "--compressed-tokens", 4) == 0
    model, processor = AutoModelForImageTextToText.from_pretrained(out), AutoProcessor.from_pretrained(out)
    assert isinstance(model, EdgeVlmForConditionalGeneration)
    assert isinstance(processor, EdgeVlmProcessor)
    assert (model.config.vision_encoder, model.config.text_config.model_type) == (vision, llm)
    content = [{"type": "image", "image": tiny.image()}, {"type": "text", "text": "what is the shape"}]
    inputs = processor.apply_chat_template(
        [{"role": "user", "content": content}], tokenize=True, return_dict=True, add_generation_prompt=True,
        return_tensors="pt",
    )  # fmt: skip
    assert (inputs["input_ids"] == model.config.image_token_id).sum() == 4
    answer = model.generate(**inputs, max_new_tokens=3, min_new_tokens=3, do_sample=False, pad_token_id=0)
    assert answer.shape[1] == inputs["input_ids"].shape[1] + 3


def test_every_option(parts, tmp_path, capsys):
    options = {"--compressed-tokens": 2, "--compressor": "conv", "--fusion": "combined", "--fusion-order": "parallel",
               "--fusion-layers": 2, "--positions": "uncompressed", "--vision-layer": -2, "--init": "normal",
               "--seed": 3}  # fmt: skip
    assert run(*parts, "--out", tmp_path / "edge", *(item for pair in options.items() for item in pair)) == 0
    assert f"{tmp_path / 'edge'}: " in capsys.readouterr().out
    config = AutoModelForImageTextToText.from_pretrained(tmp_path / "edge").config
    names = ("num_compressed_tokens", "compressor", "fusion", "fusion_order", "num_fusion_layers", "position_mode",
             "vision_feature_layer", "init")  # fmt: skip
    assert [getattr(config, name) for name in names] == list(options.values())[:-1]


def test_fusion_layers_start_as_the_language_model_s(parts, tmp_path):
    assert run(*parts, "--out", tmp_path / "edge", "--compressed-tokens", 4, "--fusion-layers", 2) == 0
    model = AutoModelForImageTextToText.from_pretrained(tmp_path / "edge").model
    source = LlamaForCausalLM.from_pretrained(tmp_path / "llm").model
    for block, layer in zip(model.fusion.decoder, source.layers, strict=True):
        for mine, other in zip(block.layer.parameters(), layer.parameters(), strict=True):
            assert torch.equal(mine, other)


def first_shard(directory):
    return sorted(directory.glob("*.safetensors"))[0]


def change_config(directory, **changes):
    path = directory / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.mark.parametrize("damage", [
    lambda tmp: first_shard(tmp / "llm").unlink(),
    lambda tmp: first_shard(tmp / "vision").unlink(),
    lambda tmp: first_shard(tmp / "llm").write_bytes(first_shard(tmp / "llm").read_bytes()[:-40]),
    lambda tmp: change_config(tmp / "llm", num_hidden_layers=3),
    lambda tmp: (tmp / "llm" / "tokenizer.json").unlink(),
    lambda tmp: (tmp / "llm" / "config.json").write_text("[]"),
    lambda tmp: (tmp / "vision" / "processor_config.json").unlink(missing_ok=True)
    or (tmp / "vision" / "preprocessor_config.json").unlink(missing_ok=True),
])  # fmt: skip
def test_half_a_checkpoint(parts, tmp_path, damage, capfd):
    damage(tmp_path)
    before = sorted(tmp_path.iterdir())
    assert run(*parts, "--out", tmp_path / "edge", "--compressed-tokens", 4) == 2
    lines = [line for line in capfd.readouterr().err.splitlines() if line]
    assert len(lines) == 1
    assert lines[0].startswith(f"error: {tmp_path}")
    assert sorted(tmp_path.iterdir()) == before


@pytest.mark.parametrize(("options", "message"), [
    (("--compressed-tokens", 5, "--compressor", "maxpool"), "num_compressed_tokens: expected a number whose most"),
    (("--compressed-tokens", 4, "--fusion-layers", 3), "num_fusion_layers: expected 1 to 2"),
    (("--compressed-tokens", 4, "--vision-layer", 3), "vision_feature_layer: expected -3 to 2"),
    (("--compressed-tokens", 4, "--fusion-order", "other"), "fusion-order"),
    (("--compressed-tokens", 17), "num_compressed_tokens: expected 1 to 16, got 17"),
    ((), "num_compressed_tokens: expected 1 to 16, got 64"),
])  # fmt: skip
def test_bad_options(parts, tmp_path, options, message, capfd):
    assert run(*parts, "--out", tmp_path / "edge", *options) == 2
    assert message in capfd.readouterr().err
    assert not (tmp_path / "edge").exists()


@pytest.mark.parametrize(("vision", "size"), [("clip", 40), ("siglip", 24), ("siglip2", 17)])
def test_image_processor_of_another_model(tiny, tmp_path, vision, size, capfd):
    save_vision(tiny, vision, tmp_path / "vision")
    save_llm(tiny, "llama", tmp_path / "llm")
    other = {
        "clip": lambda: tiny.clip_image_processor(),
        "siglip": lambda: SiglipImageProcessorPil(size={"height": size, "width": size}),
        "siglip2": lambda: Siglip2ImageProcessorPil(patch_size=8, max_num_patches=size),
    }[vision]()
    if vision == "clip":
        other.crop_size = {"height": size, "width": size}
    other.save_pretrained(tmp_path / "vision")
    arguments = ("build", "--vision", tmp_path / "vision", "--llm", tmp_path / "llm", "--out", tmp_path / "edge")
    assert run(*arguments, "--compressed-tokens", 4) == 2
    assert "image processor: expected one of" in capfd.readouterr().err
