"""Dynamic Feature Map Reduction: each image's features pooled as far as a threshold allows.

Source: LLaVA-Zip (Wang and Xuan, 2024), section 3.2, equations 1 to 4.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F

from tokenreduce.errors import FeatureError
from tokenreduce.policy import DEFAULT_FACTORS, check_factors, check_mode, check_normalization, check_tau
from tokenreduce.windows import mean_window_std, window_means

# Below this share of the image's largest value a spread is float32 rounding error, and counts as none.
_ROUNDING = 1e-6


@dataclass(frozen=True, kw_only=True, slots=True)
class Reduction:
    """What DFMR made of a batch of B images.

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
    features: torch.Tensor,
    tau: float,
    factors: Sequence[int] = DEFAULT_FACTORS,
    mode: str = "residual",
    normalize: str = "image",
) -> Reduction:
    """Pools each image's features [B, H, W, D] by the factor its own content allows.

    Args:
        features: Vision features on their grid, CLS dropped; any floating type.
        tau: Threshold on sigma, greater than 0.
        factors: Factors to choose from, ascending, from 1.
        mode: Which statistic decides. "residual": sigma(s) is what s x s pooling throws away, and the
            largest s with sigma(s) <= tau is taken. "literal": the paper's printed windows of length
            ceil(H/s) x ceil(W/s); the first s with sigma(s) > tau is taken, else the largest.
        normalize: "image" or "none"; see `sigma_per_factor`. The pooled features are never normalised.

    Raises:
        FeatureError: The features are not a finite floating [B, H, W, D] without an empty side.
        PolicyError: tau, factors, mode or normalize is out of range.
    """
    check_tau(tau)
    sigmas = sigma_per_factor(features, factors, mode, normalize)
    chosen = [factors[index] for index in choose_indices(sigmas, tau, mode).tolist()]
    return Reduction(factors=tuple(chosen), sigmas=sigmas, pooled=pool(features, chosen))


def sigma_per_factor(
    features: torch.Tensor, factors: Sequence[int] = DEFAULT_FACTORS, mode: str = "residual", normalize: str = "image"
) -> torch.Tensor:
    """Sigma of every factor for every image; [B, H, W, D] -> float32 [B, F], without gradient.

    Inside each window the population std of every channel is taken, then the mean over channels and
    windows (equations 1 to 3). With normalize="image" the features are first divided by the std of all
    H * W * D values of their image, so that tau has no unit; a constant image has sigma 0. Statistics
    are float32 whatever the features are. Errors as in `dfmr`.
    """
    check_factors(tuple(factors))
    check_mode(mode)
    check_normalization(normalize)
    _check_features(features)
    with torch.no_grad():
        x = features.detach().float()
        # Scaled to 1 first: squares of large float32 values would overflow, of tiny ones vanish.
        scale = x.abs().amax(dim=(1, 2, 3)).clamp_min(torch.finfo(torch.float32).tiny)
        x = x / scale[:, None, None, None]
        columns = [mean_window_std(x, *_window(x.shape[1], x.shape[2], factor, mode)) for factor in factors]
        sigmas = F.threshold(torch.stack(columns, dim=1), _ROUNDING, 0.0)
        if normalize == "none":
            return sigmas * scale[:, None]
        centred = x - x.mean(dim=(1, 2, 3), keepdim=True)
        spread = centred.square().mean(dim=(1, 2, 3)).sqrt()[:, None]
        return torch.where(spread > _ROUNDING, sigmas / spread.clamp_min(_ROUNDING), 0.0)


def choose_indices(sigmas: torch.Tensor, tau: float, mode: str) -> torch.Tensor:
    """Index of the factor each image gets, given sigma of ascending factors; [B, F] -> int64 [B]."""
    num_factors = sigmas.shape[1]
    indices = torch.arange(num_factors, device=sigmas.device)
    # tau is a double; rounding it to the sigmas' type could move an image across it.
    above = sigmas.double() > tau
    if mode == "residual":
        return torch.where(above, 0, indices).amax(dim=1)
    return torch.where(above, indices, num_factors - 1).amin(dim=1)


def pool(features: torch.Tensor, factors: Sequence[int]) -> list[torch.Tensor]:
    """Averages image b of [B, H, W, D] over factors[b] x factors[b] windows (equation 4); B tensors [N_b, D].

    Images of equal factor are pooled together; means are taken in float32 and rounded once.
    """
    pooled: list[torch.Tensor] = [features.new_empty(0)] * len(factors)
    for factor in sorted(set(factors)):
        rows = [row for row, other in enumerate(factors) if other == factor]
        group = features if len(rows) == len(factors) else features[rows]
        if factor > 1:
            group = window_means(group.float(), factor, factor).to(features.dtype)
        for row, tokens in zip(rows, group.flatten(1, 2), strict=True):
            pooled[row] = tokens
    return pooled


def num_tokens(height: int, width: int, factor: int) -> int:
    """Visual tokens of a height x width grid pooled by `factor`."""
    return -(-height // factor) * -(-width // factor)


def _window(height: int, width: int, factor: int, mode: str) -> tuple[int, int]:
    if mode == "residual":
        return factor, factor
    return -(-height // factor), -(-width // factor)


def _check_features(features: torch.Tensor) -> None:
    shape = list(features.shape)
    if features.ndim != 4 or 0 in shape:
        raise FeatureError(f"features: expected a non-empty [B, H, W, D], got shape {shape}")
    if not features.is_floating_point():
        raise FeatureError(f"features: expected a floating type, got {features.dtype}")
    if not bool(torch.isfinite(features).all()):
        image = int((~torch.isfinite(features)).flatten(1).any(dim=1).nonzero()[0])
        raise FeatureError(f"features: expected finite values, got NaN or infinity in image {image}")
