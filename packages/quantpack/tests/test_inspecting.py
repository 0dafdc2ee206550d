from pathlib import Path

import pytest
from transformers import LlavaForConditionalGeneration

from quantpack import inspect
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
