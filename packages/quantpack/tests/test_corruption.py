"""Faults in a pack: found by verify whatever the byte, and by the parsers when the manifest lies too."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import zstandard
from safetensors.torch import load_file, save_file

from quantpack import CorruptPackError, NotAPackError, QuantpackError, Scheme, pack, read_tensors, verify
from quantpack.container.reading import PackReader

Reseal = Callable[[Path], None]


@pytest.fixture
def small_pack(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    save_file({"w": torch.randn(3, 5), "b": torch.randn(3)}, tmp_path / "w.safetensors")
    pack(tmp_path / "w.safetensors", tmp_path / "small", Scheme(group_size=4))
    return tmp_path / "small"


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


def rewrite_index(directory: Path, change: Callable[[dict[str, object]], object]) -> None:
    """Applies `change` to the index; what it returns, if anything, replaces it."""
    path = directory / "model.safetensors"
    tensors = load_file(path)
    fields = json.loads(zstandard.decompress(tensors["quantpack.index"].numpy().tobytes()))
    text = json.dumps(change(fields) or fields)
    frame = zstandard.ZstdCompressor(write_checksum=True).compress(text.encode())
    tensors["quantpack.index"] = torch.frombuffer(bytearray(frame), dtype=torch.uint8)
    save_file(tensors, path)


def set_field(table: str, column: int, value: object) -> Callable[[dict[str, list[list[object]]]], None]:
    def change(fields: dict[str, list[list[object]]]) -> None:
        fields[table][0][column] = value

    return change


LIES: dict[str, Callable[[dict], object]] = {
    "not an object": lambda _: ["index"],
    "version": lambda fields: fields.update(version=1),
    "scheme": lambda fields: fields.update(schemes=[{"bits": 4}]),
    "bits": lambda fields: fields["schemes"][0].update(bits=3),
    "huge group": lambda fields: fields["schemes"][0].update(group_size=1 << 40),
    "unhashable granularity": lambda fields: fields["schemes"][0].update(granularity=[]),
    "no schemes": lambda fields: fields.update(schemes=[]),
    "schemes no list": lambda fields: fields.update(schemes=7),
    "blocks no list": lambda fields: fields["schemes"][0].update(blocks=7),
    "axis": lambda fields: fields["schemes"][0].update(axis="up"),
    "scheme of nothing": set_field("quantized", 4, 1),
    "scheme no number": set_field("quantized", 4, "group"),
    "blocks of one block": set_field("quantized", 5, 9),
    "row too short": lambda fields: fields["quantized"].append(["x"]),
    "row no list": lambda fields: fields["quantized"].append(7),
    "duplicate": lambda fields: fields["quantized"].append(fields["quantized"][0]),
    "quantized and kept": lambda fields: fields["kept"].append(fields["quantized"][0]),
    "aliases no object": lambda fields: fields.update(aliases=[["a", "w"]]),
    "alias of nothing": lambda fields: fields.update(aliases={"a": "nothing"}),
    "alias of an alias": lambda fields: fields.update(aliases={"a": "w", "c": "a"}),
    "alias taken": lambda fields: fields.update(aliases={"b": "w"}),
    "alias no name": lambda fields: fields.update(aliases={"a": []}),
    "name": set_field("quantized", 0, 3),
    "dtype": set_field("quantized", 1, "F128"),
    "dtype of codes": set_field("quantized", 1, "I32"),
    "wider dtype": set_field("quantized", 1, "F64"),
    "one dimension": set_field("quantized", 2, [15]),
    "empty": set_field("quantized", 2, [0, 5]),
    "negative": set_field("quantized", 2, [-3, -5]),
    "a float": set_field("quantized", 2, [3.0, 5]),
    "a bool": set_field("quantized", 2, [True, 15]),
    "larger": set_field("quantized", 2, [3, 6]),
    "terabytes": set_field("quantized", 2, [1 << 40, 1 << 40]),
    "endless": set_field("quantized", 2, [1 << 47] * 1000),
    "more frames": set_field("quantized", 3, [10, 10]),
    "no frames": set_field("quantized", 3, []),
    "longer frame": set_field("quantized", 3, [1000]),
    "kept shape": set_field("kept", 2, [4]),
    "kept dtype": set_field("kept", 1, "F64"),
    "kept terabytes": set_field("kept", 2, [1 << 40]),
}


@pytest.mark.parametrize("lie", LIES)
def test_lying_indexes_are_refused(small_pack: Path, reseal: Reseal, lie: str) -> None:
    rewrite_index(small_pack, LIES[lie])
    reseal(small_pack)
    with pytest.raises(CorruptPackError) as caught:
        verify(small_pack)
    assert "\n" not in str(caught.value)


def test_a_bomb_in_the_index_is_refused(small_pack: Path, reseal: Reseal) -> None:
    path = small_pack / "model.safetensors"
    tensors = load_file(path)
    bomb = zstandard.ZstdCompressor(write_checksum=True).compress(bytes(100 << 20))
    tensors["quantpack.index"] = torch.frombuffer(bytearray(bomb), dtype=torch.uint8)
    save_file(tensors, path)
    reseal(small_pack)
    with pytest.raises(CorruptPackError, match="at most"):
        verify(small_pack)


@pytest.mark.parametrize("scale", [0.0, -1.0, float("nan"), float("inf")])
def test_impossible_scales_are_refused(small_pack: Path, reseal: Reseal, scale: float) -> None:
    path = small_pack / "model.safetensors"
    tensors = load_file(path)
    tensors["quantpack.scales"][:4] = torch.tensor([scale]).view(torch.uint8)
    save_file(tensors, path)
    reseal(small_pack)
    with pytest.raises(CorruptPackError, match="tensor w: expected finite positive scales"):
        verify(small_pack)


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
