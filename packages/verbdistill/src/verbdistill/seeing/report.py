"""The report that a distilled student's directory keeps."""

import json
from dataclasses import asdict, fields
from pathlib import Path

from verbdistill.errors import ExtraMissingError, ReportError
from verbdistill.seeing.figures import new_figure, save_figure
from verbdistill.seeing.histories import DistillReport
from verbdistill.seeing.plotting import has_losses, has_matches, losses_figure, matches_figure
from verbdistill.seeing.summing_up import markdown
from vlmpress.artifact import whole_file

REPORT = "report.json"
MARKDOWN = "report.md"
_PICTURES = (
    ("Which teacher layers the student's layers learned from", "matched_layers.svg", has_matches, matches_figure),
    ("Loss of every target over training", "target_losses.svg", has_losses, losses_figure),
)


def write_report(folder: Path, report: DistillReport) -> None:
    """Writes report.json (everything), report.md, and pictures beside them where matplotlib is installed."""
    text = json.dumps(asdict(report), sort_keys=True, allow_nan=False) + "\n"
    with whole_file(folder / REPORT) as file:
        file.write(text.encode())
    pictures = {}
    if _can_draw():
        for caption, name, has, draw in _PICTURES:
            if has(report):
                save_figure(draw(report), folder / name)
                pictures[caption] = name
    with whole_file(folder / MARKDOWN) as file:
        file.write(markdown(report, pictures).encode())


def read_report(folder: Path) -> DistillReport:
    """Reads what `write_report` wrote.

    Raises:
        ReportError: There is none, or it is none of ours.
    """
    path = folder / REPORT
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        known = [each.name for each in fields(DistillReport)]
        chosen = {name: values[name] for name in known}
        for name in ("student_layers", "teacher_layers"):
            chosen[name] = tuple(chosen[name])
        return DistillReport(**chosen)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ReportError(
            f"{path}: expected the report of a distillation, got {type(error).__name__}: {error}"
        ) from error


def _can_draw() -> bool:
    try:
        new_figure(1, 1)
    except ExtraMissingError:
        return False
    return True
