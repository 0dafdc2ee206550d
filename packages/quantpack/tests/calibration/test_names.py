from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from torch import Tensor
from transformers import MixtralConfig, MixtralForCausalLM

from quantpack import CalibrationError
from quantpack.calibration.names import parameter_names, parameter_reader, tied_names
from quantpack.calibration.streaming import build_empty

ReadFile = tuple[list[str], Callable[[str], Tensor]]


def saved(model: Any, folder: Path) -> ReadFile:
    model.save_pretrained(folder)
    file = safe_open(folder / "model.safetensors", framework="pt")
    return list(file.keys()), file.get_tensor


def test_every_parameter_is_read_under_its_own_name(family: str, tiny: Any, tmp_path: Path) -> None:
    model = tiny.build(family)
    names, read = saved(model, tmp_path)
    empty = build_empty(type(model), model.config, torch.float32)
    by_parameter = parameter_reader(empty, names, read)
    for name, param in model.named_parameters():
        assert torch.equal(by_parameter(name), param), name
    found = parameter_names(empty, names)
    assert set(found) == set(names)
    places = dict(model.named_parameters(remove_duplicate=False))
    for name, place in found.items():
        assert torch.equal(read(name), places[place])


def test_files_of_older_versions_are_read(tiny: Any) -> None:
    found = parameter_names(
        tiny.build("llava"),
        ["language_model.model.layers.0.mlp.up_proj.weight", "vision_tower.vision_model.post_layernorm.bias", "other"],
    )
    assert found == {
        "language_model.model.layers.0.mlp.up_proj.weight": "model.language_model.layers.0.mlp.up_proj.weight",
        "vision_tower.vision_model.post_layernorm.bias": "model.vision_tower.post_layernorm.bias",
    }
    qwen = parameter_names(tiny.build("qwen2_vl"), ["visual.blocks.1.attn.qkv.weight", "model.norm.weight"])
    assert list(qwen.values()) == ["model.visual.blocks.1.attn.qkv.weight", "model.language_model.norm.weight"]


def test_tied_parameters_are_read_under_either_name(tiny: Any) -> None:
    model = tiny.build("llava")
    embeddings, head = "model.language_model.embed_tokens.weight", "lm_head.weight"
    assert tied_names(model)[embeddings] == (embeddings, head)
    names = [name for name, _ in model.named_parameters()]
    for name in (embeddings, head):
        others = [each for each in names if each != embeddings]
        read = parameter_reader(model, [*others, name], lambda file_name: torch.tensor(len(file_name)))
        assert int(read(embeddings)) == int(read(head)) == len(name)


def test_a_parameter_that_is_in_no_file_is_named(tiny: Any) -> None:
    model = tiny.build("llava")
    names = [name for name, _ in model.named_parameters() if name != "model.language_model.norm.weight"]
    with pytest.raises(CalibrationError, match=r"model\.language_model\.norm\.weight: expected a tensor for each"):
        parameter_reader(model, names, lambda name: torch.zeros(1))


def test_merged_tensors_are_refused() -> None:
    config = MixtralConfig(
        hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=2, num_key_value_heads=2,
        num_local_experts=2, vocab_size=8, head_dim=4,
    )  # fmt: skip
    model = build_empty(MixtralForCausalLM, config, torch.float32)
    with pytest.raises(CalibrationError, match=r"experts\.0\.w1\.weight: expected a tensor that only gets a new name"):
        parameter_names(model, ["model.layers.0.block_sparse_moe.experts.0.w1.weight"])


def test_two_tensors_for_one_parameter_are_refused(tiny: Any) -> None:
    with pytest.raises(CalibrationError, match="expected one tensor to become it"):
        parameter_names(tiny.build("llava"), ["language_model.lm_head.weight", "lm_head.weight"])
