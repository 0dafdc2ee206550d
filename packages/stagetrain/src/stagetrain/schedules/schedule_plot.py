"""Draws what schedules cost over a run: visual tokens of a step, and what the run has cost so far."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import accumulate, pairwise
from typing import TYPE_CHECKING, Any

from stagetrain.errors import PlotError
from stagetrain.figures import COLORS, new_figure
from stagetrain.schedules.costs import StageCost

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_STYLES = ("-", "--", ":", "-.")


def schedule_figure(costs: Mapping[str, Sequence[StageCost]]) -> Figure:
    """Visual tokens over a run, and TFLOPs (tokens where these are not known) summed up since its start.

    Args:
        costs: Stages of each schedule, for the same decoder. What the run costs is a share of what it would without
            compression, of the decoder's prefill (its backward takes twice that in every schedule).

    Raises:
        PlotError: There is no schedule.
        ExtraMissingError: matplotlib is not installed.
    """
    if not costs:
        raise PlotError("schedules: expected at least one to draw, got none")
    figure = new_figure(9.6, 3.8)
    tokens, spent = figure.subplots(1, 2)
    has_tflops = all(cost.prefill_tflops is not None for stages in costs.values() for cost in stages)
    for index, (name, stages) in enumerate(costs.items()):
        style = {"color": COLORS[index % len(COLORS)], "linestyle": _STYLES[index % len(_STYLES)], "linewidth": 1.7}
        ends = list(accumulate((stage.stage.fraction for stage in stages), initial=0.0))
        heights = [stage.visual_tokens for stage in stages]
        tokens.plot(*_steps(ends, heights), label=name, **style)
        spent.plot(ends, list(accumulate(_shares(stages, has_tflops), initial=0.0)), **style)
    _finish(tokens, "visual tokens, all layers", None)
    what = "prefill TFLOPs" if has_tflops else "visual tokens"
    _finish(spent, f"{what} so far (plain run: 1)", [0, 0.25, 0.5, 0.75, 1])
    figure.legend(loc="outside lower center", ncols=3, frameon=False, fontsize=8)
    return figure


def _steps(ends: Sequence[float], heights: Sequence[int]) -> tuple[list[float], list[int]]:
    """Corners of a curve of steps."""
    places = [place for start, end in pairwise(ends) for place in (start, end)]
    return places, [height for height in heights for _ in range(2)]


def _shares(stages: Sequence[StageCost], has_tflops: bool) -> list[float]:
    """What each stage adds, as a share of the whole run without compression."""
    plain_tokens = stages[0].cr_percent / 100 * stages[0].visual_tokens
    if not has_tflops:
        return [stage.stage.fraction * stage.visual_tokens / plain_tokens for stage in stages]
    # Every token costs the same, so two stages give the price of one and the cost of text.
    known = [(stage.visual_tokens, stage.prefill_tflops or 0.0) for stage in stages]
    low, high = min(known), max(known)
    price = (high[1] - low[1]) / (high[0] - low[0]) if high[0] > low[0] else 0.0
    plain = high[1] + price * (plain_tokens - high[0])
    return [stage.stage.fraction * (stage.prefill_tflops or 0.0) / plain for stage in stages]


def _finish(axes: Any, label: str, ticks: list[float] | None) -> None:
    axes.set(xlabel="share of the run's steps", ylabel=label, xlim=(0, 1))
    axes.set_ylim(bottom=0)
    if ticks is not None:
        axes.set_yticks(ticks)
    axes.grid(alpha=0.25, linewidth=0.6)
    axes.spines[["top", "right"]].set_visible(False)
