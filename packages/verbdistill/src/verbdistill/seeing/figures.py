"""Figures as files; matplotlib (the extra `plot`) is imported when one is drawn."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from verbdistill.errors import ExtraMissingError, PlotError
from vlmpress.artifact import whole_file

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FORMATS = (".png", ".svg")
EXTRA = "pip install 'vlmpress-verbdistill[plot]'"
_DPI = 90


def new_figure(width_in: float, height_in: float) -> Figure:
    """An empty figure.

    Raises:
        ExtraMissingError: matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ExtraMissingError(f"plots: expected matplotlib, got none; {EXTRA}") from error
    return Figure(figsize=(width_in, height_in), layout="constrained")


def check_format(path: Path) -> str:
    """The suffix of a picture's name.

    Raises:
        PlotError: It is neither .png nor .svg.
    """
    suffix = path.suffix.lower()
    if suffix not in FORMATS:
        raise PlotError(f"{path}: expected a name that ends in {' or '.join(FORMATS)}, got {path.suffix!r}")
    return suffix


def save_figure(figure: Figure, path: Path) -> None:
    """Writes the figure by its file's name, whole or not at all; equal figures give equal bytes.

    Raises:
        PlotError: The name ends in no known format.
    """
    from matplotlib import rc_context

    suffix = check_format(path)
    metadata = {"Software": None} if suffix == ".png" else {"Date": None, "Creator": None}
    # Ids inside an SVG are random without a salt.
    with whole_file(path) as file, rc_context({"svg.hashsalt": suffix}):
        figure.savefig(file, format=suffix[1:], dpi=_DPI, metadata=metadata)
