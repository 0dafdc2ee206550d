"""Packs that do not fit their model, or are damaged, through `from_pretrained`."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForImageTextToText

from quantpack import CorruptPackError, ModelMismatchError, QuantpackConfig, QuantpackError, Scheme, pack

SCHEME = Scheme(group_size=16)
Change = Callable[[dict[str, torch.Tensor]], object]
BIAS = "multi_modal_projector.linear_1.bias"
WEIGHT = "multi_modal_projector.linear_1.weight"


@pytest.mark.parametrize("dequantize", [False, True])
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda tensors: tensors.pop(BIAS), f"missing keys: model.{BIAS}"),
        (lambda tensors: tensors.pop(WEIGHT), f"missing keys: model.{WEIGHT}"),
        (lambda tensors: tensors.update(stray=torch.zeros(2)), "unexpected keys: stray"),
        (lambda tensors: tensors.update({BIAS: torch.zeros(2)}), f"{BIAS} of shape \\[2\\], not \\[32\\]"),
        (
            lambda tensors: tensors.update({WEIGHT: torch.zeros(2, 3)}),
            f"{WEIGHT} of shape \\[2, 3\\], not \\[32, 32\\]",
        ),
    ],
    ids=["missing", "missing codes", "unexpected", "shape", "shape of codes"],
)
def test_tensors_that_do_not_fit(
    dequantize: bool, change: Change, message: str, llava_family: Any, build: Any, tmp_path: Path
) -> None:
    build(llava_family).save_pretrained(tmp_path / "model")
    tensors = load_file(tmp_path / "model" / "model.safetensors")
    change(tensors)
    save_file(tensors, tmp_path / "model" / "model.safetensors", metadata={"format": "pt"})
    pack(tmp_path / "model", tmp_path / "pack", SCHEME)
    with pytest.raises(ModelMismatchError, match=message):
        AutoModelForImageTextToText.from_pretrained(
            tmp_path / "pack", quantization_config=QuantpackConfig(dequantize=dequantize)
        )


@pytest.mark.parametrize("dequantize", [False, True])
def test_a_damaged_frame_is_named(dequantize: bool, llava_family: Any, packed_dir: Any) -> None:
    directory = packed_dir(llava_family, SCHEME)
    carriers = load_file(directory / "model.safetensors")
    codes = carriers["quantpack.codes"]
    codes[codes.numel() // 2] ^= 1
    save_file(carriers, directory / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(CorruptPackError, match=r"model\.safetensors: tensor .*weight: expected an intact zstd frame"):
        AutoModelForImageTextToText.from_pretrained(
            directory, quantization_config=QuantpackConfig(dequantize=dequantize)
        )


def test_every_kind_of_damage_is_an_error_of_ours(llava_family: Any, packed_dir: Any) -> None:
    directory = packed_dir(llava_family, SCHEME)
    path = directory / "model.safetensors"
    whole = path.read_bytes()
    # The safetensors header is transformers' to read as well, before a quantizer is asked.
    begin = 8 + int.from_bytes(whole[:8], "little")
    for position in range(begin, len(whole), 997):
        damaged = bytearray(whole)
        damaged[position] ^= 0x10
        path.write_bytes(damaged)
        try:
            AutoModelForImageTextToText.from_pretrained(directory)
        except QuantpackError:
            continue
        # Scales have no checksum of their own: `verify` compares the whole file.


def test_weights_that_are_not_packed(llava_family: Any, packed_dir: Any) -> None:
    directory = packed_dir(llava_family, SCHEME)
    shutil.copyfile(directory.parent / "model" / "model.safetensors", directory / "model.safetensors")
    with pytest.raises(CorruptPackError, match="tensors of a pack"):
        AutoModelForImageTextToText.from_pretrained(directory)


def test_weights_in_several_files(llava_family: Any, build: Any, tmp_path: Path) -> None:
    build(llava_family).save_pretrained(tmp_path / "model", max_shard_size="40KB")
    with pytest.raises(CorruptPackError, match="expected one file of weights"):
        AutoModelForImageTextToText.from_pretrained(tmp_path / "model", quantization_config=QuantpackConfig())
