"""The paper's Figure 2: how sigma is distributed over images, and the images at both ends.

Source: LLaVA-Zip, Figure 2 and section 4.4. Needs the extra `plot`.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from tokenreduce.errors import ExtraMissingError, PlotError
from vlmpress.artifact import whole_file

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from PIL import Image

PAPER_TAUS = (0.05, 0.07, 0.09)
FORMATS = (".png", ".svg")
MAX_SHOWN = 10
_MAX_ROW = 6
_THUMBNAIL_PX = 120
_DPI = 90
# Okabe and Ito's: told apart by every kind of eye.
_COLORS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00")
_EXTRA = "plots: need matplotlib and Pillow; pip install 'vlmpress-tokenreduce[plot]'"


def sigma_figure(
    sigmas: np.ndarray[Any, Any],
    factors: Sequence[int],
    *,
    taus: Sequence[float] = PAPER_TAUS,
    images: Sequence[Image.Image] | None = None,
    label: str = "literal sigma",
) -> Figure:
    """Densities of sigma with a line at each tau; beside them the simplest and the busiest images.

    Args:
        sigmas: sigma of each of N images at each of F factors, [N, F].
        factors: The F factors.
        taus: Where dashed lines go.
        images: The N images, or None for the densities alone. They are ranked by sigma of the first factor
            above 1; at most ten stand at each end, and none at both.
        label: What sigma is, under the densities.

    Raises:
        PlotError: No image, or sigmas that are not [N, F].
        ExtraMissingError: matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ExtraMissingError(_EXTRA) from error
    if sigmas.ndim != 2 or not len(sigmas) or sigmas.shape[1] != len(factors):
        raise PlotError(f"sigmas: expected a non-empty [N, {len(factors)}], got shape {list(sigmas.shape)}")
    if images is None or len(sigmas) < 2:
        figure = Figure(figsize=(6.4, 3.8), layout="constrained")
        _draw_densities(figure.add_subplot(), sigmas, factors, taus, label)
        return figure
    rank = next((index for index, factor in enumerate(factors) if factor > 1), 0)
    order = np.argsort(sigmas[:, rank], kind="stable")
    num_shown = min(MAX_SHOWN, len(order) // 2)
    figure = Figure(figsize=(11.5, 3.4 if num_shown <= _MAX_ROW else 4.6), layout="constrained")
    parts: Any = figure.subfigures(1, 2, width_ratios=(1, 1.25))
    left, right = parts
    _draw_densities(left.add_subplot(), sigmas, factors, taus, label)
    halves = right.subfigures(2, 1)
    ends = (("simplest", order[:num_shown]), ("busiest", order[::-1][:num_shown]))
    for half, (name, chosen) in zip(halves, ends, strict=True):
        values = [float(sigmas[index, rank]) for index in chosen]
        half.suptitle(f"The {num_shown} {name}, sigma({factors[rank]}) below each", fontsize=9)
        _draw_thumbnails(half, [images[index] for index in chosen], values)
    return figure


def save_figure(figure: Figure, path: Path) -> None:
    """Writes the figure as PNG or SVG by the file's name; the same figure gives the same bytes.

    Raises:
        PlotError: The name ends in neither.
    """
    from matplotlib import rc_context

    suffix = check_format(path)
    metadata = {"Software": None} if suffix == ".png" else {"Date": None, "Creator": None}
    # Ids inside an SVG are random without a salt.
    with whole_file(path) as file, rc_context({"svg.hashsalt": path.suffix}):
        figure.savefig(file, format=suffix[1:], dpi=_DPI, metadata=metadata)


def check_format(path: Path) -> str:
    """The suffix of a picture's name; raises PlotError unless it is .png or .svg."""
    suffix = path.suffix.lower()
    if suffix not in FORMATS:
        raise PlotError(f"{path}: expected a name that ends in {' or '.join(FORMATS)}, got {path.suffix!r}")
    return suffix


def density(values: np.ndarray[Any, Any], places: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Gaussian kernel density of [N] values at [P] places; Silverman's bandwidth; integrates to 1."""
    low, high = np.quantile(values, (0.25, 0.75))
    spreads = [spread for spread in (values.std(), (high - low) / 1.349) if spread > 0]
    # Values all alike are a spike, as wide as makes it visible.
    narrowest = max(float(np.ptp(places)) / 400, 1e-12)
    bandwidth = max(0.9 * min(spreads) * len(values) ** -0.2, narrowest) if spreads else narrowest
    distances = (places[:, None] - values[None]) / bandwidth
    return np.exp(-0.5 * distances**2).mean(axis=1) / (bandwidth * np.sqrt(2 * np.pi))


def _draw_densities(
    axes: Any, sigmas: np.ndarray[Any, Any], factors: Sequence[int], taus: Sequence[float], label: str
) -> None:
    right = 1.15 * max(float(sigmas.max()), *taus, 1e-6)
    places = np.linspace(0, right, 600)
    for index, factor in enumerate(factors):
        color, column = _COLORS[(factor - 1) % len(_COLORS)], sigmas[:, index]
        heights = density(column, places)
        axes.fill_between(places, heights, color=color, alpha=0.22, linewidth=0)
        axes.plot(places, heights, color=color, linewidth=1.6, label=f"sigma({factor})")
        # One tick an image, a row a factor: what a density of few images is made of.
        rows = np.full(len(column), 0.015 + 0.024 * index)
        axes.plot(column, rows, "|", color=color, markersize=5, transform=axes.get_xaxis_transform())
    for index, tau in enumerate(sorted(taus)):
        named = "_" if index else "tau " + ", ".join(f"{each:g}" for each in sorted(taus))
        axes.axvline(tau, color="black", linestyle="--", linewidth=0.9, label=named)
    axes.set_xlim(0, right)
    axes.set_ylim(bottom=0)
    axes.set_xlabel(label)
    axes.set_ylabel("density")
    axes.set_title(f"{len(sigmas)} images", fontsize=9)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=8)


def _draw_thumbnails(figure: Any, images: Sequence[Image.Image], values: Sequence[float]) -> None:
    from PIL import ImageOps

    num_rows = 1 if len(images) <= _MAX_ROW else 2
    num_columns = -(-len(images) // num_rows)
    grid = list(figure.subplots(num_rows, num_columns, squeeze=False).flat)
    for axes in grid:
        axes.axis("off")
    for axes, image, value in zip(grid, images, values, strict=False):
        square = ImageOps.fit(image, (_THUMBNAIL_PX, _THUMBNAIL_PX))
        axes.imshow(np.asarray(square), interpolation="antialiased")
        axes.set_title(f"{value:.3g}", fontsize=8, y=-0.03, va="top", pad=0)
