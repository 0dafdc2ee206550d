"""The paper's Figure 1: accuracy against visual tokens kept, and where the answer's token looks in every layer."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from stagetrain.assessing.attention import KINDS
from stagetrain.assessing.scoring import Score
from stagetrain.assessing.sweeping import Assessment, SettingResult
from stagetrain.figures import COLORS, new_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_MARKERS = "osD^v<>P*X"
_STYLES = ("-", "--", ":", "-.")


def assessment_figure(assessment: Assessment) -> Figure:
    """Three panels: accuracy by share of tokens kept, attention in sum, and attention for each token.

    Raises:
        ExtraMissingError: matplotlib is not installed.
    """
    figure = new_figure(13.0, 3.9)
    accuracy, total, per_token = figure.subplots(1, 3, width_ratios=(1.35, 1, 1))
    _draw_accuracy(accuracy, assessment)
    layers = [layer.layer for layer in assessment.attention]
    for index, kind in enumerate(KINDS):
        style: dict[str, Any] = {"color": COLORS[index], "marker": _MARKERS[index], "markersize": 4, "linewidth": 1.6}
        total.plot(layers, [layer.total[kind] for layer in assessment.attention], label=kind, **style)
        means = [layer.per_token[kind] for layer in assessment.attention]
        if None not in means:
            per_token.plot(layers, means, label=kind, **style)
    total.set(title="Attention of the answer's token, summed", xlabel="decoder layer", ylim=(0, 1))
    per_token.set(title="The same, for each token", xlabel="decoder layer", yscale="log")
    for axes in (accuracy, total, per_token):
        axes.title.set_fontsize(9)
        axes.grid(alpha=0.25, linewidth=0.6)
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(frameon=False, fontsize=8)
    for axes in (total, per_token):
        axes.xaxis.get_major_locator().set_params(integer=True)
    return figure


def _draw_accuracy(axes: Any, assessment: Assessment) -> None:
    """A curve for each compressor and layer, from the model without compression through rising strides."""
    plain = assessment.results[0]
    curves: dict[tuple[str, int], list[SettingResult]] = {}
    for result in assessment.results[1:]:
        assert result.setting is not None
        curves.setdefault((result.setting.compressor, result.setting.layer), []).append(result)
    compressors = list(dict.fromkeys(name for name, _ in curves))
    depths = sorted({layer for _, layer in curves})
    for (name, layer), results in curves.items():
        points = sorted([plain, *results], key=lambda result: -result.retained_percent)
        axes.plot(
            [point.retained_percent for point in points],
            [100 * point.score.accuracy for point in points],
            color=COLORS[depths.index(layer) % len(COLORS)],
            marker=_MARKERS[depths.index(layer) % len(_MARKERS)],
            linestyle=_STYLES[compressors.index(name) % len(_STYLES)],
            markersize=4,
            linewidth=1.5,
            label=f"K = {layer}" + (f", {name}" if len(compressors) > 1 else ""),
        )
        for point in points:
            if point.setting is not None and name == compressors[0]:
                place = (point.retained_percent, 100 * point.score.accuracy)
                axes.annotate(
                    f"{point.setting.stride}", place, (0, -9), textcoords="offset points", fontsize=6, ha="center"
                )
    best, spread = 100 * plain.score.accuracy, 200 * _standard_error(plain.score)
    axes.axhspan(best - spread, best + spread, color="black", alpha=0.07, linewidth=0)
    axes.plot([100], [best], "k*", markersize=9, label="no compression\n(band: 2 standard errors)", linestyle="none")
    # Differences that chance alone makes must not fill the panel.
    low = min(100 * result.score.accuracy for result in assessment.results)
    axes.set_ylim(min(low, best - 5) - 1, min(max(100 * r.score.accuracy for r in assessment.results) + 2, 101))
    what = f"{compressors[0]}, " if len(compressors) == 1 else ""
    axes.set(
        title=f"Without training: {what}before layer K (numbers: strides)",
        xlabel="visual tokens kept in all layers, %",
        ylabel="accuracy, %",
    )


def _standard_error(score: Score) -> float:
    """Of a share of right answers among independent questions."""
    return math.sqrt(score.accuracy * (1 - score.accuracy) / score.num_questions)
