"""The threshold that gives a wanted mean number of visual tokens, or wanted shares of the factors, over images."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from tokenreduce.dfmr import num_tokens
from tokenreduce.errors import CalibrationError
from tokenreduce.policy import DEFAULT_FACTORS, NUM_DECILES, CalibrationDistribution, ReductionPolicy, check_mode
from tokenreduce.sigma import choose_indices, crossings, sigmas_of_grids

Tokens = Sequence[int] | Sequence[Sequence[int]] | torch.Tensor


def calibrate(
    feature_batches: Iterable[torch.Tensor | Sequence[torch.Tensor]],
    mean_tokens: float | None = None,
    *,
    factor_shares: Mapping[int, float] | Sequence[float] | None = None,
    factors: Sequence[int] = DEFAULT_FACTORS,
    mode: str = "residual",
    normalization: str = "image",
) -> ReductionPolicy:
    """A policy calibrated on batches of features [B, H, W, D] or of grids [H, W, D] (see `features_of`).

    Args:
        feature_batches: Grids of any sizes. Only sigma is kept of them, one batch after the other.
        mean_tokens: Wanted mean over the images of each one's own tokens.
        factor_shares: Wanted share of the images at each factor instead, {1: 0.2, 2: 0.5, 3: 0.3} or one number a
            factor. One tau cannot set several shares: the nearest in total variation distance is taken.
        factors: As in `dfmr`.
        mode: As in `dfmr`.
        normalization: As `normalize` of `dfmr`.

    Returns:
        The policy, with the distribution it gave here.

    Raises:
        CalibrationError: There is no image, the wanted mean is out of reach, the shares are not shares of
            these factors, or not exactly one of the two was given.
        FeatureError: A batch is not features.
        PolicyError: factors, mode or normalization is out of range.
    """
    factors = tuple(factors)
    if (mean_tokens is None) == (factor_shares is None):
        raise CalibrationError("mean_tokens, factor_shares: expected exactly one, got both or none")
    parts: list[torch.Tensor] = []
    tokens: list[list[int]] = []
    for features in feature_batches:
        parts.append(sigmas_of_grids(features, factors, mode, normalization).cpu())
        tokens += [[num_tokens(grid.shape[0], grid.shape[1], factor) for factor in factors] for grid in features]
    if not tokens:
        raise CalibrationError("feature_batches: expected at least one image, got none")
    options: Any = {"factors": factors, "mode": mode, "normalization": normalization}
    return calibrate_sigmas(torch.cat(parts), tokens, mean_tokens, factor_shares=factor_shares, **options)


def calibrate_sigmas(
    sigmas: torch.Tensor,
    tokens: Sequence[Sequence[int]],
    mean_tokens: float | None = None,
    *,
    factor_shares: Mapping[int, float] | Sequence[float] | None = None,
    factors: Sequence[int] = DEFAULT_FACTORS,
    mode: str = "residual",
    normalization: str = "image",
) -> ReductionPolicy:
    """As `calibrate`, from what it keeps of the images: sigma and tokens of every factor, [N, F] each, on the CPU.

    Raises:
        CalibrationError: As `calibrate` and `calibrate_tau`.
        PolicyError: factors, mode or normalization is out of range.
    """
    factors = tuple(factors)
    if (mean_tokens is None) == (factor_shares is None):
        raise CalibrationError("mean_tokens, factor_shares: expected exactly one, got both or none")
    if factor_shares is not None:
        tau = calibrate_shares(sigmas, _share_list(factor_shares, factors), mode)
    else:
        assert mean_tokens is not None
        tau = calibrate_tau(sigmas, tokens, mean_tokens, mode)
    seen = _distribution(sigmas, choose_indices(sigmas, tau, mode), torch.tensor(tokens))
    return ReductionPolicy(tau=tau, mode=mode, factors=factors, normalization=normalization, calibration=seen)


def calibrate_tau(sigmas: torch.Tensor, tokens: Tokens, mean_tokens: float, mode: str = "residual") -> float:
    """The tau whose mean token count over N images is nearest to the wanted one.

    Mean tokens never grow with tau and change only where an image's factor does. Tau is the middle of a gap
    between two such places: no calibration image sits on the threshold, where a rounding difference between two
    batch sizes would change its factor. Of two equally near, the one with more tokens.

    Args:
        sigmas: sigma of every factor for every image, [N, F].
        tokens: Tokens at each factor, not ascending: F integers for all images, or [N, F].
        mean_tokens: Wanted mean, between those of the largest and of the smallest factor.
        mode: As in `tokenreduce.dfmr`.

    Raises:
        CalibrationError: No images, NaN, shapes that do not match, or a mean out of reach.
        PolicyError: The mode is unknown.
    """
    check_mode(mode)
    _check_sigmas(sigmas)
    counts = _token_table(sigmas, tokens)
    low, high = counts[:, -1].mean(), counts[:, 0].mean()
    if not low <= mean_tokens <= high:
        raise CalibrationError(f"mean_tokens: expected {low:g} to {high:g}, got {mean_tokens}")
    edges, taus = _gaps(sigmas, mode)
    total = np.full(len(taus), counts[:, 0].sum())
    for index in range(edges.shape[1]):
        order = edges[:, index].argsort(kind="stable")
        saved = np.concatenate([[0], (counts[:, index] - counts[:, index + 1])[order].cumsum()])
        total -= saved[edges[order, index].searchsorted(taus, side="right")]
    return float(taus[np.abs(total / len(counts) - mean_tokens).argmin()])


def calibrate_shares(sigmas: torch.Tensor, shares: Sequence[float], mode: str = "residual") -> float:
    """The tau whose shares of N images at each factor are nearest to the wanted ones.

    Nearest in total variation distance, half the sum of absolute differences: tau is one number, so that not
    every set of shares can be had. Tau lies as in `calibrate_tau`; of equally near ones, the smallest.

    Args:
        sigmas: sigma of every factor for every image, [N, F].
        shares: Wanted share at each factor; F numbers that add up to 1.
        mode: As in `tokenreduce.dfmr`.

    Raises:
        CalibrationError: No images, NaN, or shares that do not match.
        PolicyError: The mode is unknown.
    """
    check_mode(mode)
    _check_sigmas(sigmas)
    if len(shares) != sigmas.shape[1]:
        raise CalibrationError(f"shares: expected {sigmas.shape[1]}, one a factor, got {len(shares)}")
    if not all(0 <= share <= 1 for share in shares) or abs(sum(shares) - 1) > 1e-6:
        raise CalibrationError(f"shares: expected numbers from 0 that add up to 1, got {list(shares)}")
    edges, taus = _gaps(sigmas, mode)
    num_images = len(edges)
    # Images at index i or more, for each tau; all of them at 0 or more, none beyond the last.
    reached = [np.full(len(taus), num_images)]
    reached += [np.sort(column).searchsorted(taus, side="right") for column in edges.T]
    counts = -np.diff([*reached, np.zeros_like(taus)], axis=0)
    distance = np.abs(counts / num_images - np.asarray(shares)[:, None]).sum(axis=0)
    # Equal distances differ in their last digits.
    return float(taus[distance.round(12).argmin()])


def mean_tokens_at(sigmas: torch.Tensor, tokens: Tokens, mode: str, tau: float) -> float:
    """Mean tokens of the images with these sigmas [N, F] under `tau`; tokens as in `calibrate_tau`."""
    counts = torch.from_numpy(_token_table(sigmas, tokens)).to(sigmas.device)
    return float(counts.gather(1, choose_indices(sigmas, tau, mode)[:, None]).double().mean())


def _gaps(sigmas: torch.Tensor, mode: str) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Where each image's index rises, [N, F-1], and one tau in each gap between those places, ascending."""
    edges = crossings(sigmas.double(), mode).cpu().numpy()
    places = np.unique(edges[edges > 0])
    between = (np.concatenate([[0.0], places[:-1]]) + places) / 2 if len(places) else places
    return edges, np.append(between, 2 * places[-1] if len(places) else 1.0)


def _distribution(sigmas: torch.Tensor, chosen: torch.Tensor, tokens: torch.Tensor) -> CalibrationDistribution:
    """What happened to N images; sigmas [N, F], indices of the chosen factors [N], tokens [N, F]."""
    num_images, num_factors = sigmas.shape
    counts = torch.bincount(chosen, minlength=num_factors).double()
    deciles = np.quantile(sigmas.double().numpy(), np.linspace(0, 1, NUM_DECILES), axis=0)
    # Interpolation between equal values can fall by a last digit.
    deciles = np.maximum.accumulate(deciles, axis=0).T
    return CalibrationDistribution(
        num_images=num_images,
        mean_tokens=float(tokens.gather(1, chosen[:, None]).double().mean()),
        shares=tuple((counts / num_images).tolist()),
        deciles=tuple(tuple(row) for row in deciles.tolist()),
    )


def _share_list(shares: Mapping[int, float] | Sequence[float], factors: tuple[int, ...]) -> list[float]:
    if not isinstance(shares, Mapping):
        return list(shares)
    if not set(shares) <= set(factors):
        raise CalibrationError(f"factor_shares: expected factors of {list(factors)}, got {sorted(shares)}")
    return [shares.get(factor, 0.0) for factor in factors]


def _token_table(sigmas: torch.Tensor, tokens: Tokens) -> NDArray[np.int64]:
    """Tokens of each image at each factor, [N, F]."""
    given = tokens.cpu().numpy() if isinstance(tokens, torch.Tensor) else np.asarray(tokens)
    num_images, num_factors = sigmas.shape
    if given.dtype.kind not in "iu" or given.shape not in ((num_factors,), (num_images, num_factors)):
        raise CalibrationError(
            f"tokens: expected integers [{num_factors}] or [{num_images}, {num_factors}], "
            f"got {given.dtype} {list(given.shape)}"
        )
    if (np.diff(given, axis=-1) > 0).any():
        raise CalibrationError("tokens: expected no ascent from a factor to the next, got one")
    return given.astype(np.int64) + np.zeros((num_images, 1), dtype=np.int64)


def _check_sigmas(sigmas: torch.Tensor) -> None:
    if sigmas.ndim != 2 or 0 in sigmas.shape:
        raise CalibrationError(f"sigmas: expected a non-empty [N, F], got shape {list(sigmas.shape)}")
    if bool(sigmas.isnan().any()):
        raise CalibrationError("sigmas: expected numbers, got NaN")
