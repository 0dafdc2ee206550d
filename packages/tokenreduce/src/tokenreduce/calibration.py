"""The threshold that gives a wanted mean number of visual tokens, or wanted shares of the factors, from sigmas."""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from tokenreduce.errors import CalibrationError
from tokenreduce.policy import check_mode
from tokenreduce.sigma import choose_indices, crossings

Tokens = Sequence[int] | Sequence[Sequence[int]] | torch.Tensor


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
    check_shares(shares, sigmas.shape[1])
    edges, taus = _gaps(sigmas, mode)
    num_images = len(edges)
    # Images at index i or more, for each tau; all of them at 0 or more, none beyond the last.
    reached = [np.full(len(taus), num_images)]
    reached += [np.sort(column).searchsorted(taus, side="right") for column in edges.T]
    counts = -np.diff([*reached, np.zeros_like(taus)], axis=0)
    distance = np.abs(counts / num_images - np.asarray(shares)[:, None]).sum(axis=0)
    # Equal distances differ in their last digits.
    return float(taus[distance.round(12).argmin()])


def check_shares(shares: Sequence[float], num_factors: int) -> None:
    """Raises CalibrationError unless these are shares of that many factors."""
    if len(shares) != num_factors:
        raise CalibrationError(f"shares: expected {num_factors}, one a factor, got {len(shares)}")
    if not all(0 <= share <= 1 for share in shares) or abs(sum(shares) - 1) > 1e-6:
        raise CalibrationError(f"shares: expected numbers from 0 that add up to 1, got {list(shares)}")


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
