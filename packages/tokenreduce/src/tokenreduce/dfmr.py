"""Dynamic Feature Map Reduction: each image's features pooled as far as a threshold allows.

Source: LLaVA-Zip (Wang and Xuan, 2024), section 3.2, equations 1 to 4.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from tokenreduce.errors import GridError
from tokenreduce.grids import group_grids, unpad
from tokenreduce.policy import DEFAULT_FACTORS, check_tau
from tokenreduce.sigma import choose_indices, sigma_per_factor, sigmas_of_grids
from tokenreduce.windows import window_means


@dataclass(frozen=True, kw_only=True, slots=True)
class Reduction:
    """What DFMR made of B images.

    Attributes:
        factors: The factor chosen for each image; B integers.
        sigmas: sigma of every factor, float32 [B, F], without gradient.
        pooled: Pooled features, row-major, one [ceil(H/s) * ceil(W/s), D] an image in the features' own type.
    """

    factors: tuple[int, ...]
    sigmas: torch.Tensor
    pooled: list[torch.Tensor]

    @property
    def num_tokens(self) -> list[int]:
        """Visual tokens left of each image."""
        return [len(tokens) for tokens in self.pooled]


def dfmr(
    features: torch.Tensor | Sequence[torch.Tensor],
    tau: float,
    factors: Sequence[int] = DEFAULT_FACTORS,
    mode: str = "residual",
    normalize: str = "image",
    *,
    grid_sizes: torch.Tensor | Sequence[Sequence[int]] | None = None,
) -> Reduction:
    """Pools each image's features by the factor its own content allows.

    Args:
        features: Vision features on their grid, CLS dropped, of any floating type: [B, H, W, D], or one
            [H, W, D] an image where sizes differ (see `unpack_naflex` for NaFlex's flat layout). A side that a
            factor does not divide ends in smaller windows, over which means and deviations are taken as they are.
        tau: Threshold on sigma, greater than 0.
        factors: Factors to choose from, ascending, from 1.
        mode: Which statistic decides. "residual": sigma(s) is what s x s pooling throws away, and the
            largest s with sigma(s) <= tau is taken. "literal": the paper's printed windows of length
            ceil(H/s) x ceil(W/s); the first s with sigma(s) > tau is taken, else the largest.
        normalize: "image" or "none"; see `sigma_per_factor`. The pooled features are never normalised.
        grid_sizes: Rows and columns [B, 2] of each image in a padded [B, H, W, D], valid at the top left. What
            the padding holds has no influence.

    Raises:
        FeatureError: The features are not finite, not floating, of another shape or have an empty side.
        GridError: The grid sizes do not fit the features.
        PolicyError: tau, factors, mode or normalize is out of range.
    """
    check_tau(tau)
    if isinstance(features, torch.Tensor) and grid_sizes is None:
        sigmas = sigma_per_factor(features, factors, mode, normalize)
        chosen = _chosen(sigmas, tau, factors, mode)
        return Reduction(factors=chosen, sigmas=sigmas, pooled=pool(features, chosen))
    if grid_sizes is None:
        grids = list(features)
    elif isinstance(features, torch.Tensor):
        grids = unpad(features, grid_sizes)
    else:
        raise GridError("grid_sizes: expected none beside a sequence of grids, got some")
    sigmas = sigmas_of_grids(grids, factors, mode, normalize)
    chosen = _chosen(sigmas, tau, factors, mode)
    return Reduction(factors=chosen, sigmas=sigmas, pooled=pool_grids(grids, chosen))


def pool(features: torch.Tensor, factors: Sequence[int]) -> list[torch.Tensor]:
    """Averages image b of [B, H, W, D] over factors[b] x factors[b] windows (equation 4); B tensors [N_b, D].

    Images of equal factor are pooled together; means are taken in float32 and rounded once.
    """
    pooled: list[torch.Tensor] = [features.new_empty(0)] * len(factors)
    for factor in sorted(set(factors)):
        rows = [row for row, other in enumerate(factors) if other == factor]
        group = features if len(rows) == len(factors) else features[rows]
        if factor > 1:
            group = window_means(group, factor, factor)
        for row, tokens in zip(rows, group.flatten(1, 2), strict=True):
            pooled[row] = tokens
    return pooled


def pool_grids(grids: Sequence[torch.Tensor], factors: Sequence[int]) -> list[torch.Tensor]:
    """As `pool`, of grids [H, W, D] of any sizes; those of one size and factor are pooled together."""
    pooled: list[torch.Tensor] = [torch.empty(0)] * len(grids)
    for factor in sorted(set(factors)):
        places = [place for place, other in enumerate(factors) if other == factor]
        for rows, batch in group_grids([grids[place] for place in places]):
            for row, tokens in zip(rows, pool(batch, [factor] * len(rows)), strict=True):
                pooled[places[row]] = tokens
    return pooled


def num_tokens(height: int, width: int, factor: int) -> int:
    """Visual tokens of a height x width grid pooled by `factor`."""
    return -(-height // factor) * -(-width // factor)


def _chosen(sigmas: torch.Tensor, tau: float, factors: Sequence[int], mode: str) -> tuple[int, ...]:
    return tuple(factors[index] for index in choose_indices(sigmas, tau, mode).tolist())
