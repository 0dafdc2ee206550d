"""`from_pretrained` of packs, against models quantized in place layer by layer."""

import math
import warnings
from typing import Any

import pytest
import torch
from transformers import AutoModel, AutoModelForImageTextToText, PreTrainedModel

from quantpack import Block, QuantpackConfig, Scheme
from quantpack.grouping import num_groups
from quantpack.hf.linear import PackedLinear

SCHEME = Scheme(group_size=16)
NOTHING: dict[str, Any] = {"missing_keys": set(), "unexpected_keys": set(), "mismatched_keys": set(), "error_msgs": []}


def load(family: Any, directory: Any, **options: Any) -> PreTrainedModel:
    """With the Auto class of the family, in silence, and with nothing to report."""
    auto = AutoModelForImageTextToText if family.generates else AutoModel
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model, info = auto.from_pretrained(directory, output_loading_info=True, **options)
    assert info == NOTHING
    assert not model.training
    return model


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["f32", "bf16"])
def test_packed_and_dequantized_models_equal_the_reference(
    family: Any, dtype: torch.dtype, packed_dir: Any, reference: Any, logits: Any, caplog: pytest.LogCaptureFixture
) -> None:
    directory = packed_dir(family, SCHEME, dtype)
    caplog.clear()
    packed = load(family, directory)
    plain = load(family, directory, quantization_config=QuantpackConfig(dequantize=True))
    expected = reference(family, SCHEME, dtype, dtype)
    assert not caplog.records
    assert packed.dtype == plain.dtype == dtype
    assert torch.equal(logits(packed, family), logits(expected, family))
    assert torch.equal(logits(plain, family), logits(expected, family))
    state, expected_state = plain.state_dict(), expected.state_dict()
    assert state.keys() == expected_state.keys()
    assert all(torch.equal(state[name], tensor) for name, tensor in expected_state.items())
    if family.generates and dtype == torch.float32:
        tokens = [model.generate(**family.batch(), max_new_tokens=4, do_sample=False) for model in (packed, expected)]
        assert torch.equal(*tokens)


def test_memory_is_that_of_the_codes(family: Any, packed_dir: Any, build: Any) -> None:
    original = build(family, torch.bfloat16)
    packed = load(family, packed_dir(family, SCHEME, torch.bfloat16))
    layers = {name: layer for name, layer in packed.named_modules() if isinstance(layer, PackedLinear)}
    assert len(layers) >= 14
    expected = size_bytes(original)
    for name in layers:
        num_rows, num_cols = original.get_parameter(f"{name}.weight").shape
        expected -= 2 * num_rows * num_cols
        # A bfloat16 scale and a byte of zero point for each group.
        expected += math.ceil(num_rows * num_cols / 2) + 3 * num_rows * math.ceil(num_cols / 16)
    assert size_bytes(packed) == expected


def size_bytes(model: torch.nn.Module) -> int:
    tensors = {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())}
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())


SCHEMES = {
    "tensor": Scheme(granularity="tensor"),
    "channel": Scheme(granularity="channel"),
    "input channel": Scheme(granularity="channel", axis="in"),
    "symmetric": Scheme(granularity="group", group_size=7, symmetric=True),
    "rows": Scheme(granularity="rows", num_rows=3),
    "agq": Scheme(granularity="agq", blocks=(Block(share=0.1, group_size=8), Block(share=0.9, num_channels=4))),
    "agq of inputs": Scheme(granularity="agq", axis="in", symmetric=True),
    "3 bits": Scheme(bits=3),
    "2 bits": Scheme(bits=2, symmetric=True),
}


@pytest.mark.parametrize("scheme", SCHEMES.values(), ids=SCHEMES.keys())
def test_every_scheme(scheme: Scheme, llava_family: Any, packed_dir: Any, reference: Any, logits: Any) -> None:
    packed = load(llava_family, packed_dir(llava_family, scheme, torch.bfloat16), dtype=torch.float32)
    assert num_groups(32, 48, scheme) in {
        layer.zeros.numel() if layer.zeros is not None else layer.scale_bytes.numel() // 2
        for layer in packed.modules()
        if isinstance(layer, PackedLinear)
    }
    expected = reference(llava_family, scheme, torch.bfloat16, torch.float32)
    assert torch.equal(logits(packed, llava_family), logits(expected, llava_family))


@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, "auto"])
def test_the_dtype_asked_for(
    dtype: Any, packed: bool, llava_family: Any, packed_dir: Any, reference: Any, logits: Any
) -> None:
    directory = packed_dir(llava_family, SCHEME, torch.bfloat16)
    model = load(llava_family, directory, dtype=dtype, quantization_config=QuantpackConfig(dequantize=not packed))
    expected_dtype = torch.bfloat16 if dtype == "auto" else dtype
    assert {parameter.dtype for parameter in model.parameters()} == {expected_dtype}
    expected = reference(llava_family, SCHEME, torch.bfloat16, expected_dtype)
    assert torch.equal(logits(model, llava_family), logits(expected, llava_family))


@pytest.mark.parametrize("device_map", ["cpu", "auto", {"": "cpu"}], ids=str)
def test_device_maps(device_map: Any, llava_family: Any, packed_dir: Any, reference: Any, logits: Any) -> None:
    pytest.importorskip("accelerate", reason="transformers asks for it where there is a device map")
    model = load(llava_family, packed_dir(llava_family, SCHEME), device_map=device_map)
    expected = reference(llava_family, SCHEME, torch.float32, torch.float32)
    assert torch.equal(logits(model, llava_family), logits(expected, llava_family))


def test_a_pack_of_shards(llava_family: Any, packed_dir: Any, reference: Any, logits: Any) -> None:
    directory = packed_dir(llava_family, SCHEME, max_shard_size="40KB")
    assert len(list((directory.parent / "model").glob("*.safetensors"))) > 2
    expected = reference(llava_family, SCHEME, torch.float32, torch.float32)
    assert torch.equal(logits(load(llava_family, directory), llava_family), logits(expected, llava_family))


def test_a_config_without_dtype_loads_in_float32(llava_family: Any, packed_dir: Any) -> None:
    directory = packed_dir(llava_family, SCHEME, torch.bfloat16)
    text = (directory / "config.json").read_text()
    (directory / "config.json").write_text(text.replace('"dtype": "bfloat16"', '"dtype": null'))
    assert load(llava_family, directory).dtype == torch.float32
