"""Sums up the histories of a report: losses at some shares of a phase, and its Markdown."""

from collections.abc import Mapping, Sequence
from typing import Any

from verbdistill.seeing.figures import EXTRA
from verbdistill.seeing.histories import INTERACTION, VERBALIZATION_STUDENT, VERBALIZATION_TEACHER, DistillReport

SHARES = (0.1, 0.3, 0.5, 0.7, 0.9, 1.0)
"""Of a phase's steps, where the paper's Appendix B reads the loss."""

LOSS_TITLES = {
    VERBALIZATION_STUDENT: "verbalization, student",
    VERBALIZATION_TEACHER: "verbalization, teacher",
    INTERACTION: "interaction, matched",
}
_NUM_POINTS = 100
_WINDOW = 0.05


def over_training(rows: Sequence[Sequence[float]]) -> list[list[float]]:
    """Loss of every target [targets, 6] at SHARES of a phase; rows [steps, targets]; means as in `smoothed`."""
    columns = list(zip(*rows, strict=True))
    return [[_until(values, max(1, round(share * len(values)))) for share in SHARES] for values in columns]


def smoothed(values: Sequence[float]) -> tuple[list[float], list[float]]:
    """(shares of the phase, means): at most a hundred points, each over the twentieth of all steps that ends there."""
    num = min(_NUM_POINTS, len(values))
    ends = [len(values) * point // num for point in range(1, num + 1)]
    return [end / len(values) for end in ends], [_until(values, end) for end in ends]


def _until(values: Sequence[float], end: int) -> float:
    part = values[max(0, end - max(1, round(len(values) * _WINDOW))) : end]
    return sum(part) / len(part)


def markdown(report: DistillReport, pictures: Mapping[str, str]) -> str:
    """The report for people.

    Args:
        report: The histories.
        pictures: Caption and file name of each picture that stands beside it.
    """
    parts = ["# Distillation", _overview(report)]
    for name, title in LOSS_TITLES.items():
        if report.losses_of(name):
            parts += [f"## Loss of every target: {title}", _losses_table(report, name)]
    if report.matches:
        parts.append("## Which teacher layers the student's layers learned from")
        parts.append("Share of the steps; several teacher layers of a step count in equal parts.")
        for title, at_end in (("First tenth of interaction", False), ("Last tenth", True)):
            parts += [f"### {title}", _matches_table(report, at_end)]
    if pictures:
        parts += ["## Pictures", *(f"![{caption}]({file})" for caption, file in pictures.items())]
    elif report.matches or any(map(report.losses_of, LOSS_TITLES)):
        parts.append(f"For pictures: `{EXTRA}`, then `verbdistill plot` on this directory.")
    if report.settings:
        parts += ["## Settings", _table(("setting", "value"), [(name, f"{v}") for name, v in report.settings.items()])]
    return "\n\n".join(parts) + "\n"


def _overview(report: DistillReport) -> str:
    lines = [
        f"Student target layers: {_listed(report.student_layers)}. "
        f"Teacher target layers: {_listed(report.teacher_layers)}.",
    ]
    rows = []
    for name, values in report.losses.items():
        if len(values):
            end = _until(values, len(values))
            rows.append((name.replace("_", " "), len(values), f"{values[0]:.4f}", f"{end:.4f}"))
    if rows:
        lines.append(_table(("loss", "steps", "first step", "last twentieth"), rows))
    return "\n\n".join(lines)


def _listed(layers: Sequence[int]) -> str:
    return ", ".join(map(str, layers)) or "none"


def _losses_table(report: DistillReport, name: str) -> str:
    heads = ("layer", *(f"{share:.0%}" for share in SHARES))
    values = over_training(report.losses_of(name))
    rows = [(layer, *(f"{v:.3f}" for v in line)) for layer, line in zip(report.layers_of(name), values, strict=True)]
    return _table(heads, rows)


def _matches_table(report: DistillReport, at_end: bool) -> str:
    heads = ("student \\ teacher", *report.teacher_layers)
    shares = report.match_shares(at_end=at_end)
    rows = [
        (layer, *(f"{share:.2f}" if share else "" for share in line))
        for layer, line in zip(report.student_layers, shares, strict=True)
    ]
    return _table(heads, rows)


def _table(heads: Sequence[Any], rows: Sequence[Sequence[Any]]) -> str:
    # A bar inside a cell would end it.
    lines = [[str(cell).replace("|", "\\|") for cell in line] for line in (heads, ["---"] * len(heads), *rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
