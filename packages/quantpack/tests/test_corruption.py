"""Faults in a pack: found by verify whatever the byte, and by the parsers when the manifest lies too."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from quantpack import (
    CorruptPackError,
    NotAPackError,
    QuantpackError,
    read_tensors,
    verify,
)
from quantpack.container.reading import PackReader
from vlmpress import artifact

Reseal = Callable[[Path], None]


def test_every_flipped_byte_is_found(small_pack: Path) -> None:
    verify(small_pack)
    for path in sorted(small_pack.iterdir()):
        original = path.read_bytes()
        for place in range(len(original)):
            path.write_bytes(original[:place] + bytes([original[place] ^ 0x01]) + original[place + 1 :])
            with pytest.raises((CorruptPackError, NotAPackError)):
                verify(small_pack)
        path.write_bytes(original)
    verify(small_pack)


def test_every_truncation_is_found(small_pack: Path) -> None:
    for path in sorted(small_pack.iterdir()):
        original = path.read_bytes()
        for size in (0, 1, len(original) // 2, len(original) - 1):
            path.write_bytes(original[:size])
            with pytest.raises(CorruptPackError):
                verify(small_pack)
        path.write_bytes(original)


def test_extra_and_missing_files_are_found(small_pack: Path) -> None:
    (small_pack / "extra.txt").write_text("x", encoding="utf-8")
    with pytest.raises(CorruptPackError, match="not listed"):
        verify(small_pack)
    (small_pack / "extra.txt").unlink()
    (small_pack / "model.safetensors").unlink()
    with pytest.raises(CorruptPackError, match="got none"):
        verify(small_pack)


@pytest.mark.parametrize("mask", [0x01, 0xFF])
def test_parsers_refuse_or_read_flipped_bytes_but_never_fall(small_pack: Path, mask: int) -> None:
    path = small_pack / "model.safetensors"
    original = path.read_bytes()
    for place in range(len(original)):
        path.write_bytes(original[:place] + bytes([original[place] ^ mask]) + original[place + 1 :])
        try:
            reader = PackReader(path)
            for name in reader.names:
                reader.tensor(name)
        except CorruptPackError:
            continue


@pytest.mark.parametrize("change", ["missing", "extra", "dtype", "two rows"])
def test_other_tensors_than_a_packs_are_refused(small_pack: Path, reseal: Reseal, change: str) -> None:
    path = small_pack / "model.safetensors"
    tensors = load_file(path)
    if change == "missing":
        del tensors["quantpack.zeros"]
    elif change == "extra":
        tensors["more"] = torch.zeros(1)
    elif change == "dtype":
        tensors["quantpack.scales"] = tensors["quantpack.scales"].to(torch.int32)
    else:
        tensors["quantpack.scales"] = tensors["quantpack.scales"].reshape(2, -1)
    save_file(tensors, path)
    reseal(small_pack)
    with pytest.raises(CorruptPackError, match="expected"):
        verify(small_pack)


def test_a_manifest_that_says_something_else_is_refused(small_pack: Path, plain_pack: Path, reseal: Reseal) -> None:
    shutil.copyfile(plain_pack / "model.safetensors", small_pack / "model.safetensors")
    reseal(small_pack)
    with pytest.raises(CorruptPackError, match="manifest says"):
        verify(small_pack)


def test_what_a_manifest_says_stays_on_one_line(small_pack: Path) -> None:
    path = small_pack / "manifest.json"
    data = path.read_text(encoding="utf-8").replace('"sha256": "', '"sha256": "a\\nb').encode()
    path.write_bytes(data)
    (small_pack / "manifest.sha256").write_text(f"{artifact.digest_bytes(data)}\n", encoding="ascii")
    with pytest.raises(CorruptPackError, match="expected a SHA-256 of 64 hex digits") as caught:
        verify(small_pack)
    assert "\n" not in str(caught.value)


def test_a_config_that_says_something_else_is_refused(llava_pack: Path, tmp_path: Path, reseal: Reseal) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(llava_pack, copy)
    config = json.loads((copy / "config.json").read_text(encoding="utf-8"))
    for change in ({"symmetric": True}, {"quant_method": "awq"}, {"granularity": "rows"}):
        fields = {**config, "quantization_config": {**config["quantization_config"], **change}}
        (copy / "config.json").write_text(json.dumps(fields), encoding="utf-8")
        reseal(copy)
        with pytest.raises(CorruptPackError, match=r"config\.json"):
            verify(copy)


def test_what_is_no_pack_is_refused(tmp_path: Path, llava_dir: Path) -> None:
    for path in (tmp_path / "nowhere", llava_dir):
        with pytest.raises(NotAPackError, match="expected an artifact directory"):
            read_tensors(path)


def test_every_error_is_a_quantpack_error() -> None:
    assert issubclass(CorruptPackError, QuantpackError)
    assert issubclass(CorruptPackError, ValueError)
