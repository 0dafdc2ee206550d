"""The report's plots, as SVG text."""

import io
from collections.abc import Sequence
from typing import Any

from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator


def svg_text(figure: Figure) -> str:
    """The figure without XML header, ready to stand inside a page; same figure, same text."""
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", bbox_inches="tight", metadata={"Date": None, "Creator": None})
    text = buffer.getvalue()
    return text[text.index("<svg") :]


def size_accuracy_svg(variants: Sequence[dict[str, Any]]) -> str:
    """Accuracy against kilobytes on disk, one point a variant."""
    figure = Figure(figsize=(5.2, 3.4))
    axes = figure.add_subplot()
    for position, variant in enumerate(variants):
        point = (variant["bytes_on_disk"] / 1e3, variant["accuracy"])
        axes.scatter(*point, color=f"C{position}", label=variant["name"], zorder=3)
    axes.set(xlabel="weights on disk (kB)", ylabel="accuracy", title="Size against accuracy")
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
    return svg_text(figure)


def tokens_svg(variants: Sequence[dict[str, Any]]) -> str:
    """Mean visual tokens of each variant."""
    figure = Figure(figsize=(5.2, 3.4))
    axes = figure.add_subplot()
    names = [variant["name"] for variant in variants]
    bars = axes.barh(names, [variant["visual_tokens_mean"] for variant in variants])
    axes.bar_label(bars, fmt="%.1f", padding=3)
    axes.invert_yaxis()
    axes.margins(x=0.15)
    axes.set(xlabel="visual tokens in the LLM, mean", title="Visual tokens")
    return svg_text(figure)


def matched_layers_svg(first: Sequence[Sequence[int]], last: Sequence[Sequence[int]]) -> str:
    """How often each student layer was matched with each teacher layer, at the start and at the end."""
    figure = Figure(figsize=(5.2, 2.6))
    for position, (title, counts) in enumerate((("first tenth", first), ("last tenth", last)), 1):
        axes = figure.add_subplot(1, 2, position)
        most = max(max(row) for row in counts)
        edges = (0.5, len(counts[0]) + 0.5, len(counts) + 0.5, 0.5)
        axes.imshow(counts, cmap="Blues", aspect="auto", vmin=0, extent=edges)
        for row, values in enumerate(counts):
            for column, value in enumerate(values):
                color = "white" if value > 0.6 * most else "black"
                axes.text(column + 1, row + 1, str(value), ha="center", va="center", fontsize=7, color=color)
        axes.set(title=title, xlabel="teacher target", ylabel="student target" if position == 1 else "")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.yaxis.set_major_locator(MaxNLocator(integer=True))
    figure.tight_layout()
    return svg_text(figure)
