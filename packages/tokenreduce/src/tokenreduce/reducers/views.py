"""What the reducers share: checks of a call, and views made into reduced ones.

Shape suffixes: N tokens, D channels.
"""

from collections.abc import Sequence

import torch

from tokenreduce.dfmr import pool_grids
from tokenreduce.errors import FeatureError, PolicyError
from tokenreduce.reducing import ReducedGrid, Reducer, VisualGrid
from tokenreduce.windows import window_centres


def check_call(
    reducer: Reducer, grids: Sequence[VisualGrid], max_tokens: int | None = None, *, takes_factors: bool = False
) -> None:
    """What every reducer without a budget refuses.

    Raises:
        PolicyError: There is a limit, or a wanted factor that the reducer has no use for or that is below 1.
        FeatureError: Features are not a finite floating [H, W, D], or have an empty side.
    """
    name = type(reducer).__name__
    if max_tokens is not None:
        raise PolicyError(f"max_tokens: expected none for a {name}, which has no budget, got {max_tokens}")
    for index, grid in enumerate(grids):
        if grid.factor is not None and not takes_factors:
            raise PolicyError(f"factor of view {index}: expected none for a {name}, got {grid.factor}")
        if grid.factor is not None:
            check_count(f"factor of view {index}", grid.factor)
        _check_features(grid.features, index)


def check_count(what: str, value: int, least: int = 1) -> None:
    """Raises PolicyError unless `value` is an integer, and not below `least`."""
    if type(value) is not int or value < least:
        raise PolicyError(f"{what}: expected an integer >= {least}, got {value!r}")


def pooled(grids: Sequence[VisualGrid], factors: Sequence[int]) -> list[ReducedGrid]:
    """Each view averaged over windows of its factor; smaller ones where a side does not divide."""
    tokens = pool_grids([grid.features for grid in grids], factors)
    return [_as_grid(grid, left, factor) for grid, left, factor in zip(grids, tokens, factors, strict=True)]


def whole(grid: VisualGrid) -> ReducedGrid:
    """The view as it is."""
    return _as_grid(grid, grid.features.flatten(0, 1), 1)


def selection(tokens_ND: torch.Tensor, places_N2: torch.Tensor) -> ReducedGrid:  # noqa: N803
    """Tokens that are no grid any more, put in raster order of their places: by row, then by column."""
    by_column = places_N2[:, 1].argsort(stable=True)
    order = by_column[places_N2[by_column, 0].argsort(stable=True)]
    return ReducedGrid(tokens=tokens_ND[order], places=places_N2[order])


def _as_grid(grid: VisualGrid, tokens_ND: torch.Tensor, factor: int) -> ReducedGrid:  # noqa: N803
    height, width = grid.features.shape[:2]
    down, across = (window_centres(side, factor) for side in (height, width))
    places = torch.cartesian_prod(down, across).to(grid.features.device)
    return ReducedGrid(tokens=tokens_ND, places=places, shape=(len(down), len(across)), factor=factor)


def _check_features(features: torch.Tensor, index: int) -> None:
    shape = list(features.shape)
    if features.ndim != 3 or 0 in shape:
        raise FeatureError(f"features of view {index}: expected a non-empty [H, W, D], got shape {shape}")
    if not features.is_floating_point():
        raise FeatureError(f"features of view {index}: expected a floating type, got {features.dtype}")
    if not bool(torch.isfinite(features).all()):
        raise FeatureError(f"features of view {index}: expected finite values, got NaN or infinity")
