"""Figures 4 and 6 from the measured cells."""

from pathlib import Path
from statistics import fmean
from typing import Any

from ecm.cells import Cells
from ecm.models import FIXED
from ecm.tables import bits_per_weight, cr

from quantpack.search.agq import Trial
from quantpack.search.drawing import Point, trade_off_svg


def draw(cells: Cells, folder: Path, bits: int) -> None:
    """Writes figure4.svg (granularities) and figure6.svg (everything, for the first model's language model)."""
    folder.mkdir(parents=True, exist_ok=True)
    full = [(fields["model"], value["accuracy"]) for fields, value in cells.of("full")]
    mean = fmean(accuracy for _, accuracy in full)
    (folder / "figure4.svg").write_text(trade_off_svg(_granularities(cells, bits), {}, mean), encoding="utf-8")
    model, accuracy = full[0]
    text = trade_off_svg(_fixed_and_rivals(cells, model, bits), _paths(cells, model, bits), accuracy)
    (folder / "figure6.svg").write_text(text, encoding="utf-8")


def _granularities(cells: Cells, bits: int) -> list[Point]:
    points = []
    for part in ("language", "vision"):
        for name in FIXED:
            rows = [row for _, row in cells.of("fixed", bits=bits, part=part, granularity=name)]
            points.append(_point(name, part, rows, bits))
    return points


def _fixed_and_rivals(cells: Cells, model: str, bits: int) -> list[Point]:
    where = {"model": model, "bits": bits, "part": "language"}
    fixed = {fields["granularity"]: row for fields, row in cells.of("fixed", **where)}
    points = [_point(name, name.strip("0123456789"), [row], bits) for name, row in fixed.items()]
    rivals = {fields["method"]: row for fields, row in cells.of("method", **where)}
    # It loses nearly all accuracy, and would squeeze the others together.
    del rivals["smoothquant"]
    return points + [_point(name, "rivals", [row], bits) for name, row in rivals.items()]


def _paths(cells: Cells, model: str, bits: int) -> dict[str, list[Trial]]:
    """With the accuracy on test questions, which the search did not see."""
    return {
        f"AGQ search, axis {fields['axis']}": [
            Trial(changed=(), cr_codes=ratio * bits / 4, bits_per_weight=0.0, accuracy=tested, accepted=bool(accepted))
            for ratio, _, tested, accepted in value["path"]
        ]
        for fields, value in cells.of("agq", model=model, bits=bits, part="language")
        if "path" in value
    }


def _point(name: str, kind: str, rows: list[dict[str, Any]], bits: int) -> Point:
    return Point(
        name=name,
        kind=kind,
        cr_codes=fmean(cr(row, bits) for row in rows),
        bits_per_weight=fmean(map(bits_per_weight, rows)),
        accuracy=fmean(row["accuracy"] for row in rows),
    )
