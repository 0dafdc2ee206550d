"""The count from shapes against torch's own counter on real forwards, and against real tensors."""

import json

import pytest
import torch
from transformers import (
    AutoModelForImageTextToText,
    InternVLConfig,
    LlamaConfig,
    LlavaConfig,
    Qwen2_5_VLConfig,
    Qwen2VLConfig,
)

import vlmpress.cli
from edgevlm import EdgeVlmConfig, UnknownPresetError, cli, preset_config
from edgevlm.errors import EdgeVlmError, ModelInputError
from edgevlm.profiling.inputs import request_inputs
from edgevlm.profiling.layouts import ImageSize
from edgevlm.profiling.macs import forward_flops
from edgevlm.profiling.memory import weight_bytes
from edgevlm.profiling.profile import profile
from edgevlm.profiling.skeletons import ShapesOnly, hollow_model, meta_model
from vlmpress.artifact import ArtifactError

SIZE = ImageSize(width=60, height=40)


def edge_config(tiny, vision="clip", text="llama", num_text_layers=2, **changes):
    config = tiny.vision_config(vision)
    if vision == "siglip":
        config.vision_use_head = False
    text = tiny.text_config(text, num_hidden_layers=num_text_layers)
    changes = {"num_compressed_tokens": 4, "image_token_id": tiny.words.index("<image>")} | changes
    return EdgeVlmConfig(vision_config=config, text_config=text, **changes)


def qwen_config(config_class, **vision):
    text = {
        "vocab_size": 40, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3, "num_attention_heads": 4,
        "num_key_value_heads": 2, "tie_word_embeddings": True,
        "rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [1, 1, 2]},
    }  # fmt: skip
    vision = {"depth": 3, "num_heads": 2, "patch_size": 14, **vision}
    tokens = {"image_token_id": 36, "video_token_id": 37, "vision_start_token_id": 38, "vision_end_token_id": 39}
    return config_class(text_config=text, vision_config=vision, tie_word_embeddings=True, **tokens)


def rival_config(name):
    if name == "qwen2_vl":
        return qwen_config(Qwen2VLConfig, embed_dim=16, hidden_size=32)
    if name == "qwen2_5_vl":
        return qwen_config(Qwen2_5_VLConfig, hidden_size=16, intermediate_size=24, out_hidden_size=32,
                           fullatt_block_indexes=[1])  # fmt: skip
    text = LlamaConfig(vocab_size=40, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
                       num_key_value_heads=2)  # fmt: skip
    vision = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2,
              "image_size": 32, "patch_size": 8, "attention_bias": True}  # fmt: skip
    return InternVLConfig(text_config=text, vision_config=vision, image_token_id=39, tie_word_embeddings=False)


def assert_counted(config, image=SIZE, num_text=9):
    """Nothing but rotary tables, products with positions of inner size 1, is left out."""
    counted = profile(config, num_text_tokens=num_text, image=image)
    model = AutoModelForImageTextToText.from_config(config).eval()
    inputs = request_inputs(config, image=image, num_text_tokens=num_text)
    assert counted.num_params == sum(parameter.numel() for parameter in model.parameters())
    assert counted.flops == pytest.approx(forward_flops(model, inputs), rel=0.005)
    with torch.inference_mode():
        output = model(**inputs, use_cache=True)
        later = model(input_ids=inputs["input_ids"][:, :1], past_key_values=output.past_key_values, use_cache=True)
    assert later.logits.isfinite().all()
    return counted, model


def cache_bytes(cache):
    """Keys and values, as if in bfloat16."""
    total = 0
    for layer in cache.layers:
        kept = layer.tensors if hasattr(layer, "tensors") else {"keys": layer.keys, "values": layer.values}
        total += sum(2 * tensor.numel() for tensor in kept.values() if tensor.is_floating_point())
    return total


@pytest.mark.parametrize("vision", ["clip", "siglip", "siglip2"])
@pytest.mark.parametrize("fusion", ["none", "cross", "decoder", "combined"])
def test_edge_models(tiny, vision, fusion):
    assert_counted(edge_config(tiny, vision, "qwen2" if vision == "siglip2" else "llama", fusion=fusion))


@pytest.mark.parametrize("vision", ["clip", "siglip2"])
@pytest.mark.parametrize(("compressor", "num_compressed"), [
    ("conv", 4), ("conv", 6), ("conv", 1), ("maxpool", 4), ("maxpool", 6), ("mlp", 3), ("none", 16),
])  # fmt: skip
def test_compressors(tiny, vision, compressor, num_compressed):
    assert_counted(edge_config(tiny, vision, compressor=compressor, num_compressed_tokens=num_compressed))


@pytest.mark.parametrize("fusion", ["cross", "decoder", "combined"])
@pytest.mark.parametrize("num_layers", [2, 3])
@pytest.mark.parametrize("order", ["serial", "parallel"])
def test_several_fusion_layers(tiny, fusion, num_layers, order):
    changes = {"fusion": fusion, "num_fusion_layers": num_layers, "fusion_order": order}
    config = edge_config(tiny, "siglip2", num_text_layers=3, **changes)
    counted, model = assert_counted(config)
    inputs = request_inputs(config, image=SIZE, num_text_tokens=9)
    with torch.inference_mode():
        assert counted.kv_cache_bytes == cache_bytes(model(**inputs, use_cache=True).past_key_values)
    # All fusion layers but the last run whole either way.
    assert counted.macs_linear - counted.macs_linear_as_run == (fusion != "cross") * 16 * (2 * 32**2 + 3 * 32 * 48)


@pytest.mark.parametrize("image", [(8, 8), (100, 20), (31, 77)])
def test_edge_model_sizes(tiny, image):
    assert_counted(edge_config(tiny, "siglip2"), ImageSize(width=image[0], height=image[1]), num_text=1)


@pytest.mark.parametrize("name", ["qwen2_vl", "qwen2_5_vl", "internvl"])
@pytest.mark.parametrize("image", [(300, 200), (150, 90)])
def test_rivals(name, image):
    counted, _ = assert_counted(rival_config(name), ImageSize(width=image[0], height=image[1]))
    assert counted.macs_linear == counted.macs_linear_as_run


@pytest.mark.parametrize("strategy", ["default", "full"])
def test_llava(tiny, strategy):
    config = LlavaConfig(
        vision_config=tiny.vision_config(), text_config=tiny.text_config(), image_token_index=4,
        vision_feature_layer=-1, vision_feature_select_strategy=strategy, tie_word_embeddings=True,
    )  # fmt: skip
    counted, _ = assert_counted(config)
    assert counted.layout.num_seen == 16 + (strategy == "full")


@pytest.mark.parametrize("fusion", ["none", "cross", "decoder", "combined"])
def test_kv_cache_is_what_the_model_keeps(tiny, fusion):
    config = edge_config(tiny, "siglip2", fusion=fusion)
    counted, model = assert_counted(config)
    inputs = request_inputs(config, image=SIZE, num_text_tokens=9)
    with torch.inference_mode():
        cache = model(**inputs, use_cache=True).past_key_values
        assert counted.kv_cache_bytes == cache_bytes(cache)
        model(input_ids=inputs["input_ids"][:, :1], past_key_values=cache, use_cache=True)
    assert counted.kv_cache_bytes_per_token == cache_bytes(cache) - counted.kv_cache_bytes


def test_hollow_models_count_like_real_ones(tiny):
    config = edge_config(tiny, "siglip2")
    inputs = request_inputs(config, image=SIZE, num_text_tokens=9)
    with ShapesOnly():
        assert forward_flops(hollow_model(config), inputs) == forward_flops(
            AutoModelForImageTextToText.from_config(config).eval(), inputs
        )


def test_hollow_models_have_the_buffers_of_real_ones(tiny):
    for config in (
        edge_config(tiny, "siglip2"),
        edge_config(tiny),
        rival_config("qwen2_5_vl"),
        rival_config("internvl"),
    ):
        real = dict(AutoModelForImageTextToText.from_config(config).named_buffers())
        for name, buffer in hollow_model(config).named_buffers():
            assert torch.equal(buffer, real.pop(name)), name
        assert not real


def test_bytes_of_weights(tiny):
    config = edge_config(tiny, fusion="none")
    counted = weight_bytes(meta_model(config), config)
    model = meta_model(config)
    kept = sum(p.numel() for n, p in model.named_parameters() if p.ndim != 2 or "embed" in n or "lm_head" in n)
    assert counted.num_kept == kept
    # Rows are shorter than a group here: one scale of 2 bytes, one zero point of half a byte a row.
    rows = counted.int8_overhead // 2
    assert counted.int4_overhead == 2 * rows + -(-rows // 2)
    assert counted.int8 == counted.num_quantized + 2 * rows + 2 * kept
    assert counted.int4 == -(-counted.num_quantized // 2) + counted.int4_overhead + 2 * kept
    assert counted.float32 == 2 * counted.bfloat16 == 4 * (counted.num_quantized + kept)


def run(*arguments):
    return vlmpress.cli.run(cli.app, (EdgeVlmError, ArtifactError), [str(argument) for argument in arguments])


def test_command_side_by_side(capsys):
    presets = ("--preset", "auroraedge-v-2b:cross", "--preset", "qwen2-vl-2b")
    assert run("profile", *presets, "--json") == 0
    first, second = json.loads(capsys.readouterr().out)
    assert (first["fusion"], second["num_visual_tokens"]) == ("cross", 391)
    assert first["params"] == sum(first["params_by_module"].values())
    assert run("profile", *presets) == 0
    table = capsys.readouterr().out
    assert "1,646.4" in table
    assert "34 x 46 patches" in table


def test_command_options(capsys):
    assert run("profile", "--fusion", "none", "--compressor", "none", "--text-tokens", 5, "--json") == 0
    assert json.loads(capsys.readouterr().out)["num_visual_tokens"] == 256
    params = []
    for number in (1, 2):
        assert run("profile", "--compressor", "conv", "--fusion-layers", number, "--json") == 0
        params.append(json.loads(capsys.readouterr().out)["params_by_module"]["fusion"])
    assert params[1] == 2 * params[0]
    assert run("profile", "--preset", "qwen2-vl-2b", "--image", "56x56", "--json") == 0
    assert json.loads(capsys.readouterr().out)["num_visual_tokens"] == 4


def test_command_on_a_saved_model(tiny, tmp_path, capsys):
    model = tiny.edge()
    model.save_pretrained(tmp_path)
    assert run("profile", "--model", tmp_path, "--json") == 0
    fields = json.loads(capsys.readouterr().out)
    assert fields["params"] == model.num_parameters()
    (tmp_path / "config.json").write_text('{"model_type": "bert"}', encoding="utf-8")
    assert run("profile", "--model", tmp_path) == 2
    assert "got 'bert'" in capsys.readouterr().err
    (tmp_path / "config.json").write_text('{"model_type": "unheard-of"}', encoding="utf-8")
    assert run("profile", "--model", tmp_path) == 2


@pytest.mark.parametrize("arguments", [
    ("--preset", "other"), ("--preset", "qwen2-vl-2b:cross"), ("--preset", "auroraedge-v-2b:other"),
    ("--preset", "auroraedge-v-2b:"), ("--image", "640"), ("--image", "0x4"), ("--image", "\u0663x4"),
    ("--model", "nowhere"), ("--preset", "qwen2-vl-2b", "--fusion", "cross"),
    ("--preset", "qwen2-vl-2b", "--image", "999x1"), ("--compressed-tokens", "300"),
])  # fmt: skip
def test_bad_input(arguments, capsys):
    assert run("profile", *arguments) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_errors():
    with pytest.raises(UnknownPresetError, match="expected one of auroraedge-v-2b, qwen2-vl-2b"):
        preset_config("qwen3")
    with pytest.raises(ModelInputError):
        ImageSize(width=0, height=1)
