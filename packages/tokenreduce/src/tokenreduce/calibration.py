"""The threshold that gives a wanted mean number of visual tokens over a set of images."""

import bisect
from collections.abc import Iterable, Sequence
from functools import partial

import torch

from tokenreduce.dfmr import choose_indices, num_tokens, sigma_per_factor
from tokenreduce.errors import CalibrationError
from tokenreduce.policy import DEFAULT_FACTORS, NUM_DECILES, CalibrationDistribution, ReductionPolicy, check_mode


def calibrate_tau(
    sigmas: torch.Tensor, tokens_per_factor: Sequence[int], target_mean_tokens: float, mode: str = "residual"
) -> float:
    """The tau whose mean token count over N images is nearest to the target.

    Mean tokens never grow with tau and change only at the sigmas, so a binary search over the gaps between
    them finds it. Tau is the middle of its gap: no calibration image sits on the threshold, where a rounding
    difference between two batch sizes would change its factor. Of two equally near, the one with more tokens.

    Args:
        sigmas: sigma of every factor for every image, [N, F].
        tokens_per_factor: Tokens an image has at each factor; F integers, not ascending.
        target_mean_tokens: Wanted mean, between the smallest and the largest of them.
        mode: As in `tokenreduce.dfmr`.

    Raises:
        CalibrationError: No images, NaN, shapes that do not match, or a target out of reach.
        PolicyError: The mode is unknown.
    """
    check_mode(mode)
    _check(sigmas, tokens_per_factor, target_mean_tokens)
    edges = sigmas.double().unique(sorted=True)
    edges = edges[edges > 0].tolist()
    # A gap before the first sigma, between each two, and after the last.
    taus = [(low + high) / 2 for low, high in zip([0.0, *edges], edges, strict=False)] + [
        2 * edges[-1] if edges else 1.0
    ]
    mean_at = partial(mean_tokens_at, sigmas, tokens_per_factor, mode)
    # Negated, because bisect wants ascending keys: the first tau with a mean at or below the target.
    first = bisect.bisect_left(taus, -target_mean_tokens, key=lambda tau: -mean_at(tau))
    near = taus[max(first - 1, 0) : first + 1]
    return min(near, key=lambda tau: abs(mean_at(tau) - target_mean_tokens))


def mean_tokens_at(sigmas: torch.Tensor, tokens_per_factor: Sequence[int], mode: str, tau: float) -> float:
    """Mean tokens of the images with these sigmas [N, F] under `tau`."""
    tokens = torch.tensor(tokens_per_factor, dtype=torch.float64, device=sigmas.device)
    return float(tokens[choose_indices(sigmas, tau, mode)].mean())


def calibrate(
    feature_batches: Iterable[torch.Tensor],
    target_mean_tokens: float,
    *,
    factors: Sequence[int] = DEFAULT_FACTORS,
    mode: str = "residual",
    normalization: str = "image",
) -> ReductionPolicy:
    """A policy calibrated on batches of features [B, H, W, D] of one grid size (see `features_of`).

    Raises:
        CalibrationError: There is no batch, the grids differ, or the target is out of reach.
        FeatureError: A batch is not features.
        PolicyError: factors, mode or normalization is out of range.
    """
    factors = tuple(factors)
    parts: list[torch.Tensor] = []
    grids: set[tuple[int, int]] = set()
    for features in feature_batches:
        parts.append(sigma_per_factor(features, factors, mode, normalization).cpu())
        grids.add((features.shape[1], features.shape[2]))
    if len(grids) != 1:
        raise CalibrationError(f"feature batches: expected one grid size, got {sorted(grids)}")
    height, width = grids.pop()
    sigmas = torch.cat(parts)
    tokens = [num_tokens(height, width, factor) for factor in factors]
    tau = calibrate_tau(sigmas, tokens, target_mean_tokens, mode)
    seen = _distribution(sigmas, choose_indices(sigmas, tau, mode), torch.tensor([tokens] * len(sigmas)))
    return ReductionPolicy(tau=tau, mode=mode, factors=factors, normalization=normalization, calibration=seen)


def _distribution(sigmas: torch.Tensor, chosen: torch.Tensor, tokens: torch.Tensor) -> CalibrationDistribution:
    """What happened to N images; sigmas [N, F], indices of the chosen factors [N], tokens [N, F]."""
    num_images, num_factors = sigmas.shape
    counts = torch.bincount(chosen, minlength=num_factors).double()
    levels = torch.linspace(0, 1, NUM_DECILES, dtype=torch.float64)
    deciles = sigmas.double().quantile(levels, dim=0).T
    return CalibrationDistribution(
        num_images=num_images,
        mean_tokens=float(tokens.gather(1, chosen[:, None]).double().mean()),
        shares=tuple((counts / num_images).tolist()),
        deciles=tuple(tuple(row) for row in deciles.tolist()),
    )


def _check(sigmas: torch.Tensor, tokens_per_factor: Sequence[int], target: float) -> None:
    if sigmas.ndim != 2 or sigmas.shape[0] == 0 or sigmas.shape[1] != len(tokens_per_factor):
        raise CalibrationError(
            f"sigmas: expected a non-empty [N, {len(tokens_per_factor)}], got shape {list(sigmas.shape)}"
        )
    if bool(sigmas.isnan().any()):
        raise CalibrationError("sigmas: expected numbers, got NaN")
    if sorted(tokens_per_factor, reverse=True) != list(tokens_per_factor):
        raise CalibrationError(f"tokens_per_factor: expected no ascent, got {list(tokens_per_factor)}")
    low, high = min(tokens_per_factor), max(tokens_per_factor)
    if not low <= target <= high:
        raise CalibrationError(f"target_mean_tokens: expected {low} to {high}, got {target}")
