"""What a loaded pack can be turned into."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModel, AutoModelForImageTextToText, PreTrainedModel

from quantpack import PackedModelError, QuantpackConfig, Scheme, read_tensors
from quantpack.hf.linear import PackedLinear

SCHEME = Scheme(group_size=16)


def load(family: Any, directory: Path, **options: Any) -> PreTrainedModel:
    auto = AutoModelForImageTextToText if family.generates else AutoModel
    return auto.from_pretrained(directory, **options)


def test_dequantize_makes_an_ordinary_model(family: Any, packed_dir: Any, reference: Any, logits: Any) -> None:
    model = load(family, packed_dir(family, SCHEME, torch.bfloat16))
    assert any(isinstance(layer, PackedLinear) for layer in model.modules())
    plain = model.dequantize()
    assert not any(isinstance(layer, PackedLinear) for layer in plain.modules())
    assert not plain.is_quantized
    expected = reference(family, SCHEME, torch.bfloat16, torch.bfloat16)
    assert torch.equal(logits(plain, family), logits(expected, family))


def test_dequantize_to_another_dtype(llava_family: Any, packed_dir: Any, reference: Any, logits: Any) -> None:
    model = AutoModelForImageTextToText.from_pretrained(packed_dir(llava_family, SCHEME, torch.bfloat16))
    plain = model.dequantize(dtype=torch.float32)
    expected = reference(llava_family, SCHEME, torch.bfloat16, torch.float32)
    assert plain.dtype == torch.float32
    assert torch.equal(logits(plain, llava_family), logits(expected, llava_family))


@pytest.mark.parametrize("late", [False, True])
def test_a_dequantized_model_is_saved_under_the_names_of_the_original(
    late: bool, family: Any, packed_dir: Any, tmp_path: Path
) -> None:
    directory = packed_dir(family, SCHEME)
    model = load(family, directory, quantization_config=QuantpackConfig(dequantize=not late))
    (model.dequantize() if late else model).save_pretrained(tmp_path / "saved")
    saved, expected = load_file(tmp_path / "saved" / "model.safetensors"), read_tensors(directory)
    assert saved.keys() == expected.keys()
    assert all(torch.equal(saved[name], tensor) for name, tensor in expected.items())
    assert "quantization_config" not in json.loads((tmp_path / "saved" / "config.json").read_text())
    assert load(family, tmp_path / "saved").dtype == torch.float32


def test_a_packed_model_is_not_saved(llava_family: Any, packed_dir: Any, tmp_path: Path) -> None:
    model = AutoModelForImageTextToText.from_pretrained(packed_dir(llava_family, SCHEME))
    with pytest.raises(PackedModelError, match=r"copy the pack's directory, or call model\.dequantize"):
        model.save_pretrained(tmp_path / "saved")
    assert not (tmp_path / "saved").exists()


def test_the_config_of_a_packed_model_says_how_it_was_quantized(llava_family: Any, packed_dir: Any) -> None:
    directory = packed_dir(llava_family, SCHEME)
    model = AutoModelForImageTextToText.from_pretrained(directory, quantization_config=QuantpackConfig())
    stored = json.loads((directory / "config.json").read_text())["quantization_config"]
    assert model.config.to_dict()["quantization_config"] == stored
    assert "dequantize" not in stored
    assert model.quantization_method == "quantpack"
    assert not model.hf_quantizer.is_trainable
