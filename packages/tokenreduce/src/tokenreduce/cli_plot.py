"""`tokenreduce plot`."""

from pathlib import Path
from typing import Annotated

import numpy as np
import typer

from tokenreduce.cli_options import (
    EncoderOption,
    FactorsOption,
    FeaturesOption,
    ImagesArgument,
    LayerOption,
    NormalizeOption,
    parse_factors,
)
from tokenreduce.cli_sources import read_views
from tokenreduce.errors import PlotError
from tokenreduce.images import open_image
from tokenreduce.plotting import PAPER_TAUS, check_format, save_figure, sigma_figure
from tokenreduce.policy import check_tau
from tokenreduce.view_plans import view_sigmas

_UNITS = {"none": "in the features' own unit", "image": "divided by each image's std"}


def plot(
    out: Annotated[Path, typer.Option("--out", metavar="FILE", help="The picture: .png or .svg.")],
    images: ImagesArgument = None,
    features: FeaturesOption = None,
    encoder: EncoderOption = None,
    layer: LayerOption = None,
    tau: Annotated[
        list[float] | None, typer.Option("--tau", help="A dashed line; may be repeated. The paper's by default.")
    ] = None,
    factors: FactorsOption = "1,2,3",
    normalize: NormalizeOption = "none",
) -> None:
    """Draw how literal sigma is distributed over images, and the simplest and the busiest of them (Figure 2).

    Nothing is normalised unless you ask for it: the paper's thresholds are in the features' own unit. Beside
    --features, IMAGES are the files the features are of, in their order, and may be left out.
    """
    check_format(out)
    taus = PAPER_TAUS if not tau else tuple(tau)
    for value in taus:
        check_tau(value)
    chosen, paths = parse_factors(factors), images or []
    named = list(read_views(features, encoder, layer, paths))
    # Of an image cut into tiles, only the first view: the whole image in every model that has both.
    if encoder is not None:
        named = list({name: (name, view) for name, view in reversed(named)}.values())[::-1]
    if paths and len(named) != len(paths):
        raise PlotError(f"IMAGES: expected {len(named)} files, one for each image of the features, got {len(paths)}")
    sigmas = view_sigmas([view for _, view in named], chosen, "literal", normalize)
    pictures = [open_image(path) for path in paths] if paths else None
    values = np.asarray(sigmas.tolist())
    save_figure(sigma_figure(values, chosen, taus=taus, images=pictures, unit=_UNITS[normalize]), out)
    typer.echo(f"{out}: {len(values)} images")
