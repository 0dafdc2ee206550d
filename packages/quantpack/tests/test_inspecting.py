import math
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from transformers import LlavaForConditionalGeneration

from quantpack import Scheme, inspect, pack
from quantpack.container.nibbles import stored_codes
from quantpack.container.reading import PackReader
from quantpack.inspecting import entropy_bits
from quantpack.selection import PARTS, part_of
from vlmpress import artifact


def files_bytes(directory: Path) -> int:
    return sum(path.stat().st_size for path in directory.rglob("*") if path.is_file())


def test_parts_add_up_to_the_files_on_disk(llava_pack: Path) -> None:
    reports = inspect(llava_pack)
    assert [report.part for report in reports] == ["vision", "language", "other", "total"]
    *parts, total = reports
    for field in ("num_weights", "code_bytes_packed", "code_bytes_compressed", "bytes_on_disk"):
        assert getattr(total, field) == sum(getattr(part, field) for part in parts)
    assert total.bytes_on_disk == files_bytes(llava_pack)
    for report in reports:
        assert report.code_bytes_packed == report.num_weights / 2
        assert report.cr_codes == report.code_bytes_packed / report.code_bytes_compressed
    stated = artifact.read(llava_pack).manifest.quantized_model
    assert stated.num_codes == total.num_weights
    assert stated.code_bytes_packed == total.code_bytes_packed
    assert stated.code_bytes_compressed == total.code_bytes_compressed


def test_entropy_is_the_code_weighted_mean_over_tensors(llava_pack: Path) -> None:
    reader = PackReader(llava_pack / "model.safetensors")
    bits: dict[str, float] = dict.fromkeys(PARTS, 0.0)
    codes: dict[str, int] = dict.fromkeys(PARTS, 0)
    for entry in reader.index.quantized:
        stored = stored_codes(reader.quantized(entry.name)).reshape(-1)
        shares = torch.bincount(stored.int(), minlength=16) / stored.numel()
        bits[part_of(entry.name)] += -torch.xlogy(shares, shares).sum().item() / math.log(2) * stored.numel()
        codes[part_of(entry.name)] += stored.numel()
    *parts, total = inspect(llava_pack)
    for report in parts:
        assert report.entropy_bits_per_code == pytest.approx(bits[report.part] / codes[report.part], rel=1e-5)
        # Without frames' headers no coder of single codes does better.
        assert report.entropy_bits_per_code < 4 / report.cr_codes
    assert total.entropy_bits_per_code == pytest.approx(sum(bits.values()) / sum(codes.values()), rel=1e-5)


def test_the_unused_half_of_the_last_byte_is_no_code(tmp_path: Path) -> None:
    # Symmetric codes 7, -7, 7 of one scale: stored 15, 1, 15.
    save_file({"w": torch.tensor([[7.0, -7.0, 7.0]])}, tmp_path / "w.safetensors")
    pack(tmp_path / "w.safetensors", tmp_path / "pack", Scheme(granularity="tensor", symmetric=True))
    total = inspect(tmp_path / "pack")[-1]
    assert total.entropy_bits_per_code == pytest.approx(entropy_bits([1, 2]))


def test_entropy_of_counts() -> None:
    assert entropy_bits([]) == entropy_bits([0, 5]) == 0.0
    assert entropy_bits([3, 3, 0, 3, 3]) == 2.0


def test_bits_are_over_all_weights(llava: LlavaForConditionalGeneration, llava_pack: Path) -> None:
    vision, language, _, total = inspect(llava_pack)
    assert total.bits_per_weight == pytest.approx(8 * total.bytes_on_disk / llava.num_parameters())
    num_vision = sum(parameter.numel() for parameter in llava.model.vision_tower.parameters())
    assert vision.bits_per_weight == pytest.approx(8 * vision.bytes_on_disk / num_vision)
    num_language = sum(parameter.numel() for parameter in llava.model.language_model.parameters())
    assert language.bits_per_weight == pytest.approx(8 * language.bytes_on_disk / num_language)


def test_a_plain_file_has_no_parts(plain_pack: Path) -> None:
    vision, language, other, total = inspect(plain_pack)
    assert vision.num_weights == language.num_weights == vision.bytes_on_disk == language.bytes_on_disk == 0
    assert vision.cr_codes == vision.bits_per_weight == 0.0
    assert other.num_weights == total.num_weights == 5 * 7 + 4 * 6
    assert total.code_bytes_packed == 18 + 12
    assert total.bytes_on_disk == files_bytes(plain_pack)
