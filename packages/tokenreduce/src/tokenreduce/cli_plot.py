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
    ModeOption,
    NormalizeOption,
    parse_factors,
)
from tokenreduce.cli_sources import read_views
from tokenreduce.encoders.images import open_image
from tokenreduce.errors import PlotError
from tokenreduce.plotting import PAPER_TAUS, check_format, save_figure, sigma_figure
from tokenreduce.policy import check_mode, check_normalization, check_tau
from tokenreduce.sigma import sigmas_of_grids

_UNITS = {"none": "in the features' own unit", "image": "divided by each image's std"}
_PAPERS = ("literal", "none")


def plot(
    out: Annotated[Path, typer.Option("--out", metavar="FILE", help="The picture: .png or .svg.")],
    images: ImagesArgument = None,
    features: FeaturesOption = None,
    encoder: EncoderOption = None,
    layer: LayerOption = None,
    tau: Annotated[
        list[float] | None,
        typer.Option("--tau", help="A dashed line; may be repeated. The paper's for its own sigma."),
    ] = None,
    mode: ModeOption = "literal",
    factors: FactorsOption = "1,2,3",
    normalize: NormalizeOption = "none",
) -> None:
    """Draw how sigma is distributed over images, and the simplest and the busiest of them (the paper's Figure 2).

    Literal and not normalised unless you ask for another: the paper's thresholds are in the features' own unit.
    Beside --features, IMAGES are the files the features are of, in their order, and may be left out.
    """
    check_format(out)
    check_mode(mode)
    check_normalization(normalize)
    taus = tuple(tau or (PAPER_TAUS if (mode, normalize) == _PAPERS else ()))
    for value in taus:
        check_tau(value)
    chosen, paths = parse_factors(factors), images or []
    named = list(read_views(features, encoder, layer, paths))
    # One sigma an image: of one cut into tiles that of the first view, AnyRes's view of the whole image.
    if encoder is not None:
        named = list({name: (name, view) for name, view in reversed(named)}.values())[::-1]
    if paths and len(named) != len(paths):
        raise PlotError(f"IMAGES: expected {len(named)} files, one for each image of the features, got {len(paths)}")
    sigmas = np.asarray(sigmas_of_grids([view for _, view in named], chosen, mode, normalize).tolist())
    # Residual sigma(1) is 0 for every image.
    first = 1 if mode == "residual" and len(chosen) > 1 else 0
    pictures = [open_image(path) for path in paths] if paths else None
    label = f"{mode} sigma, {_UNITS[normalize]}"
    save_figure(sigma_figure(sigmas[:, first:], chosen[first:], taus=taus, images=pictures, label=label), out)
    typer.echo(f"{out}: {len(sigmas)} images")
