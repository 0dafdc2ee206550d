"""Where the bytes of a pack are."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from quantpack.container.nibbles import packed_bytes
from quantpack.container.reading import PackReader
from quantpack.opening import open_pack
from quantpack.report import PartReport
from quantpack.selection import PARTS, Part, part_of


@dataclass(slots=True)
class _Sums:
    quantized: int = 0
    kept: int = 0
    packed: int = 0
    compressed: int = 0
    on_disk: int = 0
    code_bits: float = 0.0

    def report(self, part: str) -> PartReport:
        weights = self.quantized + self.kept
        return PartReport(
            part=part,
            num_weights=self.quantized,
            code_bytes_packed=self.packed,
            code_bytes_compressed=self.compressed,
            cr_codes=self.packed / self.compressed if self.compressed else 0.0,
            entropy_bits_per_code=self.code_bits / self.quantized if self.quantized else 0.0,
            bits_per_weight=8 * self.on_disk / weights if weights else 0.0,
            bytes_on_disk=self.on_disk,
        )


def inspect(directory: Path) -> list[PartReport]:
    """Size figures of vision, language, other and total, in this order.

    The total counts every file of the directory. What serves all tensors (headers, index, manifest,
    config, tokenizer) is in "other", and so is every tensor of a pack of a plain file.

    Raises:
        NotAPackError: The directory is no pack.
        CorruptPackError: Its manifest, index or codes are damaged; other bytes are not looked at.
    """
    directory = Path(directory)
    _, weights = open_pack(directory, check_bytes=False)
    is_model = (directory / "config.json").exists()
    sums: dict[Part, _Sums] = {part: _Sums() for part in PARTS}
    _add_tensors(weights, sums, is_model=is_model)
    files = sum(path.stat().st_size for path in directory.rglob("*") if path.is_file())
    sums["other"].on_disk += files - sum(part.on_disk for part in sums.values())
    total = _Sums(
        quantized=sum(part.quantized for part in sums.values()),
        kept=sum(part.kept for part in sums.values()),
        packed=sum(part.packed for part in sums.values()),
        compressed=sum(part.compressed for part in sums.values()),
        on_disk=files,
        code_bits=sum(part.code_bits for part in sums.values()),
    )
    return [*(sums[part].report(part) for part in PARTS), total.report("total")]


def _add_tensors(weights: PackReader, sums: dict[Part, _Sums], *, is_model: bool) -> None:
    for entry in weights.index.quantized:
        part = sums[part_of(entry.name) if is_model else "other"]
        part.quantized += entry.num_weights
        part.packed += packed_bytes(entry.num_weights)
        part.compressed += sum(entry.frame_bytes)
        part.on_disk += sum(entry.carrier_bytes())
        part.code_bits += entry.num_weights * entropy_bits(weights.code_counts(entry.name))
    for entry in weights.index.kept:
        part = sums[part_of(entry.name) if is_model else "other"]
        part.kept += entry.num_weights
        part.on_disk += sum(entry.frame_bytes)


def entropy_bits(counts: Sequence[int]) -> float:
    """Order-0 entropy, in bits, of symbols that occur so often."""
    total = sum(counts)
    return math.fsum(count / total * math.log2(total / count) for count in counts if count)
