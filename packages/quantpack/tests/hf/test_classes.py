"""Packs through other classes than the one that was packed, and checkpoints that the model's class converts."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    CLIPVisionModel,
    LlavaForConditionalGeneration,
    LlavaModel,
    MixtralConfig,
    MixtralForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
    Siglip2Model,
    Siglip2VisionModel,
)

from quantpack import ModelMismatchError, QuantpackConfig, Scheme, load, pack, read_tensors, unpack
from quantpack.hf.embedding import PackedEmbedding
from quantpack.hf.linear import PackedLinear, TiedLinear
from quantpack.recipe import PartRecipe, Recipe

SCHEME = Scheme(group_size=16)
TEXT: dict[str, Any] = {
    "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 1,
    "intermediate_size": 48, "vocab_size": 40, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
IDS = torch.tensor([[3, 9, 27, 5, 15]])


def count_packed(model: torch.nn.Module) -> int:
    return sum(isinstance(module, PackedLinear) for module in model.modules())


@pytest.mark.parametrize("tied", [True, False])
def test_a_causal_language_model(tied: bool, tmp_path: Path) -> None:
    torch.manual_seed(0)
    Qwen2ForCausalLM(Qwen2Config(**TEXT, tie_word_embeddings=tied)).save_pretrained(tmp_path / "model")
    pack(tmp_path / "model", tmp_path / "pack", SCHEME)
    packed, info = AutoModelForCausalLM.from_pretrained(tmp_path / "pack", output_loading_info=True)
    assert not any(info.values())
    assert isinstance(packed, Qwen2ForCausalLM)
    assert (packed.lm_head.weight is packed.model.embed_tokens.weight) is tied
    assert count_packed(packed) == 14
    with torch.no_grad():
        assert torch.equal(packed(IDS).logits, load(tmp_path / "pack")(IDS).logits)


def bytes_of(model: torch.nn.Module) -> int:
    tensors = {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())}
    return sum(tensor.nbytes for tensor in tensors.values())


@pytest.mark.parametrize("tied", [True, False])
def test_quantized_embeddings_and_heads(tied: bool, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    torch.manual_seed(0)
    Qwen2ForCausalLM(Qwen2Config(**TEXT, tie_word_embeddings=tied)).save_pretrained(tmp_path / "model")
    pack(tmp_path / "model", tmp_path / "pack", Recipe(default=PartRecipe(scheme=SCHEME), embeddings="int4"))
    caplog.clear()
    packed, info = AutoModelForCausalLM.from_pretrained(tmp_path / "pack", output_loading_info=True)
    assert not any(info.values())
    assert not caplog.records
    plain = load(tmp_path / "pack")
    assert isinstance(packed.model.embed_tokens, PackedEmbedding)
    assert isinstance(packed.lm_head, TiedLinear if tied else PackedLinear)
    # Only norms and biases stay as they are.
    assert bytes_of(packed) < 0.27 * bytes_of(plain)
    with torch.no_grad():
        assert torch.equal(packed(IDS).logits, plain(IDS).logits)
    options: dict[str, Any] = {"max_new_tokens": 4, "do_sample": False}
    assert torch.equal(packed.generate(IDS, **options), plain.generate(IDS, **options))
    again = packed.dequantize()
    assert (again.lm_head.weight is again.model.embed_tokens.weight) is tied
    again.save_pretrained(tmp_path / "saved")
    saved, expected = load_file(tmp_path / "saved" / "model.safetensors"), read_tensors(tmp_path / "pack")
    assert saved.keys() == expected.keys()
    assert all(torch.equal(saved[name], tensor) for name, tensor in expected.items())


def test_a_table_that_is_stored_under_the_name_of_the_head(tmp_path: Path) -> None:
    torch.manual_seed(0)
    Qwen2ForCausalLM(Qwen2Config(**TEXT, tie_word_embeddings=True)).save_pretrained(tmp_path / "model")
    tensors = load_file(tmp_path / "model" / "model.safetensors")
    tensors["lm_head.weight"] = tensors.pop("model.embed_tokens.weight")
    save_file(tensors, tmp_path / "model" / "model.safetensors", metadata={"format": "pt"})
    pack(tmp_path / "model", tmp_path / "pack", Recipe(default=PartRecipe(scheme=SCHEME), embeddings="int4"))
    packed, plain = AutoModelForCausalLM.from_pretrained(tmp_path / "pack"), load(tmp_path / "pack")
    assert packed.lm_head.weight is packed.model.embed_tokens.weight
    with torch.no_grad():
        assert torch.equal(packed(IDS).logits, plain(IDS).logits)


def test_the_concrete_class_and_the_model_without_its_head(llava_family: Any, packed_dir: Any) -> None:
    directory = packed_dir(llava_family, SCHEME)
    whole = LlavaForConditionalGeneration.from_pretrained(directory)
    assert count_packed(whole) == 28
    for headless in (LlavaModel.from_pretrained(directory), AutoModel.from_pretrained(directory)):
        assert isinstance(headless, LlavaModel)
        with torch.no_grad():
            hidden = headless(**llava_family.batch()).last_hidden_state
            assert torch.equal(whole.lm_head(hidden), whole(**llava_family.batch()).logits)


def test_a_tower_of_a_model(siglip2_family: Any, packed_dir: Any) -> None:
    directory = packed_dir(siglip2_family, SCHEME)
    whole = AutoModel.from_pretrained(directory)
    assert isinstance(whole, Siglip2Model)
    # The tower's part of config.json does not say that it is packed; the caller does.
    tower = Siglip2VisionModel.from_pretrained(directory, quantization_config=QuantpackConfig())
    assert count_packed(tower) == 14
    images = {name: tensor for name, tensor in siglip2_family.batch().items() if name != "input_ids"}
    with torch.no_grad():
        assert torch.equal(tower(**images).pooler_output, whole.vision_model(**images).pooler_output)


def test_a_tower_packed_alone(siglip2_family: Any, build: Any, tmp_path: Path) -> None:
    tower = build(siglip2_family).vision_model
    tower.save_pretrained(tmp_path / "model")
    pack(tmp_path / "model", tmp_path / "pack", SCHEME)
    images = {name: tensor for name, tensor in siglip2_family.batch().items() if name != "input_ids"}
    packed, plain = AutoModel.from_pretrained(tmp_path / "pack"), load(tmp_path / "pack")
    assert isinstance(packed, Siglip2VisionModel)
    assert isinstance(plain, Siglip2VisionModel)
    with torch.no_grad():
        assert torch.equal(packed(**images).pooler_output, plain(**images).pooler_output)


@pytest.mark.parametrize("dequantize", [False, True])
def test_tensors_that_the_model_merges_are_dequantized_first(dequantize: bool, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = MixtralForCausalLM(MixtralConfig(**TEXT, num_local_experts=3))
    model.save_pretrained(tmp_path / "model")
    pack(tmp_path / "model", tmp_path / "pack", SCHEME)
    restored = tmp_path / "restored"
    model.config.save_pretrained(restored)
    unpack(tmp_path / "pack", restored / "model.safetensors")
    config = QuantpackConfig(dequantize=dequantize)
    packed, info = AutoModelForCausalLM.from_pretrained(
        tmp_path / "pack", quantization_config=config, output_loading_info=True
    )
    assert not any(info.values())
    assert count_packed(packed) == (0 if dequantize else 8)
    with torch.no_grad():
        assert torch.equal(packed(IDS).logits, MixtralForCausalLM.from_pretrained(restored)(IDS).logits)


def test_names_that_the_caller_maps(tmp_path: Path) -> None:
    torch.manual_seed(0)
    Qwen2ForCausalLM(Qwen2Config(**TEXT)).save_pretrained(tmp_path / "model")
    tensors = load_file(tmp_path / "model" / "model.safetensors")
    renamed = {name.replace("model.layers", "model.blocks"): tensor for name, tensor in tensors.items()}
    save_file(renamed, tmp_path / "model" / "model.safetensors", metadata={"format": "pt"})
    pack(tmp_path / "model", tmp_path / "pack", SCHEME)
    with pytest.raises(ModelMismatchError, match=r"unexpected keys: model\.blocks"):
        Qwen2ForCausalLM.from_pretrained(tmp_path / "pack")
    model = Qwen2ForCausalLM.from_pretrained(tmp_path / "pack", key_mapping={r"^model\.blocks": "model.layers"})
    assert torch.equal(model.model.norm.weight, tensors["model.norm.weight"])
    assert count_packed(model) == 14


def test_a_class_that_wants_more_than_the_pack_has(llava_family: Any, build: Any, tmp_path: Path) -> None:
    tower = build(llava_family).model.vision_tower
    assert isinstance(tower, CLIPVisionModel)
    tower.save_pretrained(tmp_path / "model")
    pack(tmp_path / "model", tmp_path / "pack", SCHEME)
    with pytest.raises(ModelMismatchError, match="missing keys: "):
        LlavaModel.from_pretrained(
            tmp_path / "pack", config=build(llava_family).config, quantization_config=QuantpackConfig()
        )
