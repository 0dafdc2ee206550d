"""What the commands print."""

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from quantpack import shapes
from quantpack.report import PartReport
from quantpack.selection import Part
from quantpack.sweeping import Sweep
from quantpack.timing import PackTimes


def by_part(reports: list[PartReport]) -> dict[str, dict[str, Any]]:
    """Reports as JSON, by part."""
    fields = [asdict(report) for report in reports]
    return {row.pop("part"): row for row in fields}


def pack_table(reports: list[PartReport]) -> str:
    """`inspect` for people."""
    lines = [
        f"{'part':<9} {'weights':>13} {'int4 bytes':>13} {'compressed':>13} {'CR':>6} {'H/code':>7} {'bits/w':>7} "
        f"{'on disk':>13}"
    ]
    for report in reports:
        lines.append(
            f"{report.part:<9} {report.num_weights:>13,} {report.code_bytes_packed:>13,} "
            f"{report.code_bytes_compressed:>13,} {report.cr_codes:>6.3f} "
            f"{report.entropy_bits_per_code:>7.3f} {report.bits_per_weight:>7.3f} {report.bytes_on_disk:>13,}"
        )
    return "\n".join(lines)


def shape_fields(counts: Mapping[Part, int]) -> dict[str, Any]:
    """Figure 1 and Table 2 of ECM as JSON."""
    return {
        "parts": [asdict(share) for share in shapes.part_shares(counts)],
        "savings": [
            {**asdict(method), "saving": shapes.saving(counts, method.language_cr, method.vision_cr)}
            for method in shapes.METHODS
        ],
    }


def shape_table(counts: Mapping[Part, int]) -> str:
    """Figure 1 and Table 2 of ECM for people."""
    lines = [f"{'part':<9} {'weights':>15} {'16 bit':>7} {'INT4 language':>14}"]
    for share in shapes.part_shares(counts):
        lines.append(
            f"{share.part:<9} {share.num_weights:>15,} {share.share_16bit:>7.1%} {share.share_int4_language:>14.1%}"
        )
    lines.append(f"\n{'method':<9} {'language CR':>15} {'vision CR':>10} {'saves':>7}")
    for method in shapes.METHODS:
        vision = "-" if method.vision_cr is None else f"{method.vision_cr:.2f}"
        saved = shapes.saving(counts, method.language_cr, method.vision_cr)
        lines.append(f"{method.name:<9} {method.language_cr:>15.2f} {vision:>10} {saved:>7.1%}")
    return "\n".join(lines)


def sweep_table(found: Sweep) -> str:
    """`sweep` for people."""
    lines = [f"{'setting':<14} {'CR':>6} {'bits/w':>7} {'accuracy':>9}", f"{'none':<31} {found.full_accuracy:>7.4f}"]
    for point in found.points:
        lines.append(f"{point.name:<14} {point.cr_codes:>6.3f} {point.bits_per_weight:>7.3f} {point.accuracy:>9.4f}")
    return "\n".join(lines)


def times_table(found: PackTimes) -> str:
    """`bench` for people."""
    lines = [
        f"decode  {found.decode_mb_per_s:>7.0f} MB/s of packed codes, one thread, all checks",
        f"zstd    {found.zstd_mb_per_s:>7.0f} MB/s on the same frames; ratio {found.decode_ratio:.3f}",
        f"verify  {found.verify_s:>7.3f} s",
    ]
    if found.load_s is not None:
        lines.append(f"load    {found.load_s:>7.3f} s, dequantized")
    return "\n".join(lines)
