"""Compression against accuracy, as SVG (ECM Figures 4 and 6)."""

import importlib.util
import io
from collections.abc import Sequence
from dataclasses import dataclass

from quantpack.errors import MissingExtraError
from quantpack.search.agq import Trial


@dataclass(frozen=True, kw_only=True, slots=True)
class Point:
    """A quantized model.

    Attributes:
        name: Shown beside it.
        kind: Points of one kind look alike and stand together in the legend: "group", "tensor", "AWQ".
        cr_codes: The paper's compression ratio.
        bits_per_weight: Codes, scales and zeros over the quantized weights.
        accuracy: 0 to 1.
    """

    name: str
    kind: str
    cr_codes: float
    bits_per_weight: float
    accuracy: float


_MARKERS = "sD^voPX*"


def check_can_draw() -> None:
    """Looks before long work whether its picture can be drawn.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    if importlib.util.find_spec("matplotlib") is None:
        raise MissingExtraError("drawing: expected matplotlib; pip install 'vlmpress-quantpack[plot]'")


def trade_off_svg(points: Sequence[Point], paths: dict[str, Sequence[Trial]], full_accuracy: float | None) -> str:
    """Points, and the way each search took: its accepted steps as a line, refused ones as crosses, its end as a star.

    Args:
        points: Fixed settings.
        paths: Trials of each search, by its name.
        full_accuracy: Of the model before quantization, drawn as a line.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    check_can_draw()
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.4, 4.2))
    axes = figure.add_subplot()
    for number, kind in enumerate(dict.fromkeys(point.kind for point in points)):
        chosen = [point for point in points if point.kind == kind]
        values = ([point.cr_codes for point in chosen], [point.accuracy for point in chosen])
        axes.scatter(*values, label=_plain(kind), marker=_MARKERS[number % len(_MARKERS)], zorder=3)
        for point in chosen:
            place = (point.cr_codes, point.accuracy)
            axes.annotate(_plain(point.name), place, fontsize=6, xytext=(3, 3), textcoords="offset points")
    for name, trials in paths.items():
        kept = [trial for trial in trials if trial.accepted]
        refused = [trial for trial in trials if not trial.accepted]
        (line,) = axes.plot([trial.cr_codes for trial in kept], [trial.accuracy for trial in kept], label=name)
        color = line.get_color()
        axes.scatter(
            [trial.cr_codes for trial in refused], [trial.accuracy for trial in refused], marker="x", s=12, color=color
        )
        if kept:
            axes.scatter(kept[-1].cr_codes, kept[-1].accuracy, marker="*", s=140, color=color, zorder=4)
    if full_accuracy is not None:
        axes.axhline(full_accuracy, color="gray", linestyle="--", linewidth=0.8)
    axes.set(xlabel="CR of the codes", ylabel="accuracy")
    axes.grid(alpha=0.3)
    if points or paths:
        axes.legend(fontsize=7)
    buffer = io.StringIO()
    # Text as text: drawn as shapes it is most of the file.
    with rc_context({"svg.fonttype": "none", "svg.hashsalt": "quantpack"}):
        figure.savefig(buffer, format="svg", bbox_inches="tight", metadata={"Date": None, "Creator": None})
    text = buffer.getvalue()
    return text[text.index("<svg") :]


def _plain(text: str) -> str:
    """Two dollars would make a formula of what is between them, and an error of what is none."""
    return text.replace("$", r"\$")
