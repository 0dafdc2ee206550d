"""Markdown tables of the measured cells."""

from collections.abc import Iterable, Mapping, Sequence
from statistics import fmean, stdev
from typing import Any

from ecm.cells import Cells
from ecm.fidelity import KINDS, WANTED

from quantpack.shapes import saving

Row = dict[str, Any]
_NAMES = {
    "tensor": "per tensor",
    "channel": "per channel",
    "group32": "group 32",
    "awq": "AWQ",
    "smoothquant": "SmoothQuant",
    "mbq": "MBQ",
    "gptq": "GPTQ",
}
_RIVALS = ("awq", "smoothquant", "mbq", "gptq")
_ROUNDINGS = {"nearest": "", "gptq": ", GPTQ rounding"}
_PARTS = ("language", "vision")


def all_tables(cells: Cells) -> str:
    parts = [_fidelity(cells), _shapes(cells)]
    widths = sorted({fields["bits"] for fields, _ in cells.of("fixed")}, reverse=True)
    parts += [_table_1(cells, bits) for bits in widths]
    parts += [_table_2(cells, bits) for bits in widths if any(cells.of("rival", bits=bits))]
    parts += [_table_4(cells, bits) for bits in widths if any(cells.of("agq", bits=bits))]
    parts += [_seen_and_unseen(cells)]
    files = sorted({(fields["file"], fields["bits"]) for fields, _ in cells.of("matrices")}, reverse=True)
    parts += [_matrices(cells, file) for file in dict.fromkeys(file for file, _ in files)]
    return "\n\n".join(part for part in parts if part)


def cr(row: Row, bits: int) -> float:
    """Codes at their own bits over compressed codes."""
    return row["weights"] * bits / 8 / row["compressed"]


def bits_per_code(row: Row) -> float:
    return 8 * row["compressed"] / row["weights"]


def bits_per_weight(row: Row) -> float:
    """Scales, zeros and block numbers included."""
    return 8 * (row["compressed"] + row["side"]) / row["weights"]


def spread(values: Iterable[float], digits: int) -> str:
    """Mean and sample standard deviation."""
    numbers = list(values)
    if len(numbers) < 2:
        return f"{numbers[0]:.{digits}f}" if numbers else "-"
    return f"{fmean(numbers):.{digits}f} +- {stdev(numbers):.{digits}f}"


def _table(title: str, head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [f"**{title}**", "", f"| {' | '.join(head)} |", f"|{'---|' * len(head)}"]
    # A row that was not measured ends in a dash.
    return "\n".join([*lines, *(f"| {' | '.join(row)} |" for row in rows if row[-1] != "-")])


def _fidelity(cells: Cells) -> str:
    rows = []
    for name in WANTED:
        row = [name]
        for kind in KINDS:
            for _, value in cells.of("gaussian", granularity=name, kind=kind):
                off = value["cr"] / value["wanted"] - 1
                row.append(f"{value['cr']:.3f} / {value['wanted']:.3f} ({off:+.1%}), H {value['over_entropy']:+.1%}")
        rows.append(row)
    title = "Gaussian 2048 x 2048: CR measured / wanted (off by), and compressed codes against their order-0 entropy H"
    return _table(title, ("", *KINDS), rows)


def _shapes(cells: Cells) -> str:
    rows = [
        [name, f"{row['saving']:.1%}", f"{row['wanted']:.1%}"]
        for _, value in cells.of("shapes")
        for name, row in value["rows"].items()
    ]
    title = "LLaVA-OneVision-0.5B: memory saved against the INT4 language model, from shapes and the printed CRs"
    return _table(title, ("", "ours", "printed"), rows)


def _described(rows: Sequence[Row], bits: int, full: Mapping[str, float], models: Sequence[str]) -> list[str]:
    """CR, bits per code and per weight, accuracy and its drop, over the models."""
    if not rows:
        return ["-"] * 4
    drops = [full[model] - row["accuracy"] for model, row in zip(models, rows, strict=True)]
    return [
        f"{fmean(cr(row, bits) for row in rows):.3f}",
        f"{fmean(map(bits_per_code, rows)):.2f} / {fmean(map(bits_per_weight, rows)):.2f}",
        spread([100 * row["accuracy"] for row in rows], 1),
        spread([100 * drop for drop in drops], 1),
    ]


def _full(cells: Cells) -> dict[str, float]:
    return {fields["model"]: value["accuracy"] for fields, value in cells.of("full")}


def _row(cells: Cells, label: str, bits: str, section: str, rounding: str = "", **wanted: object) -> list[str]:
    """The means over the models; of a search the codes by one rounding."""
    found = list(cells.of(section, bits=bits, **wanted))
    rows = [value["rows"][rounding] if rounding else value for _, value in found]
    return [label, *_described(rows, int(bits), _full(cells), [fields["model"] for fields, _ in found])]


_HEAD = ("CR", "bits/code / with scales", "accuracy", "drop")


def _table_1(cells: Cells, bits: str) -> str:
    lines = []
    for part in ("language", "vision"):
        rows = [
            _row(cells, _NAMES[name], bits, "fixed", part=part, granularity=name)
            for name in ("tensor", "channel", "group32")
        ]
        rows += [_row(cells, _NAMES[name], bits, "method", part=part, method=name) for name in _RIVALS]
        for axis in ("out", "in"):
            # ECM in the vision encoder has its own section: no zero points, and scaling.
            section, where = ("ecm", {}) if part == "vision" else ("agq", {"part": part})
            for rounding, note in _ROUNDINGS.items():
                rows.append(_row(cells, f"ECM, axis {axis}{note}", bits, section, rounding, axis=axis, **where))
        lines += [[part if number == 0 else "", *row] for number, row in enumerate(rows)]
    full = spread([100 * each for each in _full(cells).values()], 1)
    return _table(f"Table 1, INT{bits}: one part quantized; 16 bits: {full}", ("part", "method", *_HEAD), lines)


def _table_4(cells: Cells, bits: str) -> str:
    lines = []
    for part in ("vision", "language"):
        lines.append(["", part, *_row(cells, "group 32", bits, "fixed", part=part, granularity="group32")])
        for axis in ("out", "in"):
            for rounding, note in _ROUNDINGS.items():
                row = _row(cells, f"+ AGQ{note}", bits, "agq", rounding, part=part, axis=axis)
                lines.append([axis, part, *row])
            for prefix, step in (("symmetric-", "+ symmetric"), ("", "+ scaling")):
                for rounding, note in _ROUNDINGS.items():
                    if part == "vision":
                        row = _row(cells, f"{step}{note}", bits, "ecm", f"{prefix}{rounding}", axis=axis)
                        lines.append([axis, part, *row])
    return _table(f"Table 4, INT{bits}: what each step of ECM does", ("axis", "part", "steps", *_HEAD), lines)


def _table_2(cells: Cells, bits: str) -> str:
    full = {fields["model"]: value for fields, value in cells.of("full")}
    rivals = {label: cells.of("rival", bits=bits, method=name) for name, label in (("awq", "AWQ+C"), ("mbq", "MBQ+C"))}
    rows = {label: [(fields["model"], value) for fields, value in found] for label, found in rivals.items()}
    for axis in ("out", "in"):
        for section, note in (("ecm", ""), ("ecm-gptq", _ROUNDINGS["gptq"])):
            found = cells.of(section, bits=bits, axis=axis)
            rows[f"ECM, axis {axis}{note}"] = [(fields["model"], value["whole"]) for fields, value in found]
    lines = []
    for label, values in rows.items():
        if not values:
            continue
        crs = {part: [v["cr"][part] * int(bits) / 4 for _, v in values if part in v["cr"]] for part in _PARTS}
        counted = [saving(full[m]["counts"], v["cr"]["language"], v["cr"].get("vision")) for m, v in values]
        real = [1 - v["weight_bytes"] / v["int4_language_bytes"] for _, v in values]
        lines.append(
            [
                label,
                *(f"{fmean(crs[part]):.3f}" if crs[part] else "-" for part in _PARTS),
                f"{fmean(counted):.1%}",
                f"{fmean(real):.1%}",
                spread([100 * v["accuracy"] for _, v in values], 1),
                spread([100 * (full[m]["accuracy"] - v["accuracy"]) for m, v in values], 1),
            ]
        )
    head = ("method", "LLM CR", "VE CR", "saved, as the paper counts", "saved, bytes on disk", "accuracy", "drop")
    return _table(f"Table 2, INT{bits}: both parts", head, lines)


def _seen_and_unseen(cells: Cells) -> str:
    """How much of what a search found holds on questions it did not look at."""
    full = {fields["model"]: value for fields, value in cells.of("full")}
    drops: dict[tuple[str, str, str], list[tuple[float, float, float]]] = {}
    found = [(f, f["part"], "AGQ", v, v["rows"]["nearest"]) for f, v in cells.of("agq")]
    found += [(f, "vision", "symmetric, scaling", v, v["rows"]["nearest"]) for f, v in cells.of("ecm")]
    for fields, part, kind, value, row in found:
        before = full[fields["model"]]
        seen = next(accuracy for alpha, _, accuracy, _ in value["scalings"] if alpha == value["alpha"])
        drop = (
            before["search_accuracy"] - value["floor"],
            before["search_accuracy"] - seen,
            before["accuracy"] - row["accuracy"],
        )
        drops.setdefault((f"INT{fields['bits']}", part, f"{kind}, axis {fields['axis']}"), []).append(drop)
    lines = [
        [*key, *(spread([100 * each for each in column], 1) for column in zip(*values, strict=True))]
        for key, values in sorted(drops.items())
    ]
    head = ("", "part", "search", "drop allowed", "drop on the questions searched", "drop on test questions")
    return _table("What a search sees and what it does not", head, lines) if lines else ""


def _matrices(cells: Cells, file: str) -> str:
    rows: dict[tuple[str, str], dict[str, Row]] = {}
    for fields, value in cells.of("matrices", file=file):
        rows.setdefault((fields["granularity"], fields["method"]), {})[fields["bits"]] = value
        about = f"{file}: {fields['matrices']} matrices, groups of {fields['group']}"
    lines = []
    for (granularity, method), by_bits in rows.items():
        line = [granularity, method]
        for bits in ("4", "3"):
            row = by_bits.get(bits)
            line += (
                [f"{cr(row, int(bits)):.3f}", f"{bits_per_weight(row):.2f}", f"{row['error']:.4f}"]
                if row
                else ["-"] * 3
            )
            if bits == "4":
                line.append(f"{row['over_entropy']:+.1%}" if row and "over_entropy" in row else "-")
        lines.append(line)
    head = ("granularity", "method", "INT4 CR", "bits/weight", "error", "H", "INT3 CR", "bits/weight", "error")
    return _table(about, head, lines)
