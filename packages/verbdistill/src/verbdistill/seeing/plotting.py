"""Draws which teacher layers a student learned from (Figure 5), and each target's loss over training (Appendix B)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from verbdistill.errors import PlotError
from verbdistill.seeing.figures import new_figure
from verbdistill.seeing.histories import DistillReport
from verbdistill.seeing.summing_up import LOSS_TITLES, SHARES, over_training, smoothed

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_MOST_NUMBERS = 12
_COLORS = "viridis"


def report_figure(report: DistillReport) -> Figure:
    """Everything a report can draw, in one figure.

    Raises:
        PlotError: There is nothing to draw.
        ExtraMissingError: matplotlib is not installed.
    """
    draws = [draw for has, draw in ((has_matches, _draw_matches), (has_losses, _draw_losses)) if has(report)]
    if not draws:
        raise PlotError("report: expected matches or losses of targets, got none")
    figure = new_figure(10.0, 4.0 * len(draws))
    parts: Any = figure.subfigures(len(draws), 1, squeeze=False)
    for draw, part in zip(draws, parts[:, 0], strict=True):
        draw(part, report)
    return figure


def matches_figure(report: DistillReport) -> Figure:
    """Share of each teacher layer in what each student layer learned from, at the start and at the end.

    Raises:
        ExtraMissingError: matplotlib is not installed.
    """
    figure = new_figure(10.0, 4.0)
    _draw_matches(figure, report)
    return figure


def losses_figure(report: DistillReport) -> Figure:
    """Loss of every target over the steps of a phase, a panel each phase.

    Raises:
        ExtraMissingError: matplotlib is not installed.
    """
    figure = new_figure(10.0, 4.0)
    _draw_losses(figure, report)
    return figure


def has_matches(report: DistillReport) -> bool:
    """Whether there is something for `matches_figure`."""
    return bool(report.matches)


def has_losses(report: DistillReport) -> bool:
    """Whether there is something for `losses_figure`."""
    return any(map(report.losses_of, LOSS_TITLES))


def _draw_matches(figure: Any, report: DistillReport) -> None:
    panels = figure.subplots(1, 2, sharey=True)
    titles = ("first tenth of interaction", "last tenth of interaction")
    both = [report.match_shares(at_end=at_end) for at_end in (False, True)]
    most = max(share for shares in both for row in shares for share in row)
    for axes, title, shares in zip(panels, titles, both, strict=True):
        image = axes.imshow(shares, cmap="Blues", aspect="auto", vmin=0, vmax=most)
        if len(report.teacher_layers) <= _MOST_NUMBERS:
            _write_numbers(axes, shares, most)
        axes.set(title=title, xlabel="teacher layer")
        axes.set_xticks(range(len(report.teacher_layers)), report.teacher_layers)
        axes.set_yticks(range(len(report.student_layers)), report.student_layers)
        axes.tick_params(labelsize=8)
    panels[0].set_ylabel("student layer")
    figure.colorbar(image, ax=list(panels), label="share of what it learned from")


def _write_numbers(axes: Any, shares: Sequence[Sequence[float]], most: float) -> None:
    for row, values in enumerate(shares):
        for column, value in enumerate(values):
            if value > 0:
                color = "white" if value > 0.6 * most else "black"
                axes.text(column, row, f"{value:.2f}", ha="center", va="center", fontsize=7, color=color)


def _draw_losses(figure: Any, report: DistillReport) -> None:
    from matplotlib import colormaps
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import ListedColormap, Normalize

    # The bright end of the scale cannot be seen on white.
    colors = ListedColormap([colormaps[_COLORS](0.88 * index / 255) for index in range(256)])
    names = [name for name in LOSS_TITLES if report.losses_of(name)]
    for axes, name in zip(figure.subplots(1, len(names), squeeze=False)[0], names, strict=True):
        rows, layers = report.losses_of(name), report.layers_of(name)
        scale = Normalize(layers[0], max(layers[-1], layers[0] + 1))
        marks = over_training(rows)
        for target, layer in enumerate(layers):
            color = colors(scale(layer))
            places, values = smoothed([row[target] for row in rows])
            axes.plot(places, values, color=color, linewidth=1.2, label=f"layer {layer}")
            axes.plot(SHARES, marks[target], color=color, marker="o", markersize=3, linestyle="none")
        axes.set(title=LOSS_TITLES[name], xlabel="share of the phase's steps", xlim=(0, 1.02))
        axes.title.set_fontsize(9)
        axes.set_ylim(bottom=0)
        axes.grid(alpha=0.25, linewidth=0.6)
        axes.spines[["top", "right"]].set_visible(False)
        figure.colorbar(ScalarMappable(scale, colors), ax=axes, label="layer", ticks=_some(layers))
    figure.axes[0].set_ylabel("loss")


def _some(layers: Sequence[int]) -> list[int]:
    """At most ten of the layers, for the marks of a scale."""
    return list(layers[:: -(-len(layers) // 10)])
