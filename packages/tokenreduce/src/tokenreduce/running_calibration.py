"""Policies calibrated on images, which may come bit by bit."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from tokenreduce.calibration import calibrate_shares, calibrate_tau, check_shares
from tokenreduce.errors import CalibrationError
from tokenreduce.policy import (
    DEFAULT_FACTORS,
    NUM_DECILES,
    CalibrationDistribution,
    ReductionPolicy,
    check_factors,
    check_mode,
    check_normalization,
)
from tokenreduce.reducing import Features, as_views
from tokenreduce.sigma import choose_indices, sigmas_of_grids


@dataclass(frozen=True, kw_only=True, slots=True)
class CalibrationSettings:
    """What a calibration is to reach, and with which kind of policy.

    Attributes:
        mean_tokens: Wanted mean visual tokens of an image; None with `factor_shares`.
        factor_shares: Wanted share of the images at each factor, in their order; None with `mean_tokens`.
        factors: As in `ReductionPolicy`.
        mode: As in `ReductionPolicy`.
        normalization: As in `ReductionPolicy`.

    Raises:
        CalibrationError: Not exactly one wish, or one that no images can fulfil.
        PolicyError: factors, mode or normalization is out of range.
    """

    mean_tokens: float | None = None
    factor_shares: tuple[float, ...] | None = None
    factors: tuple[int, ...] = DEFAULT_FACTORS
    mode: str = "residual"
    normalization: str = "image"

    def __post_init__(self) -> None:
        check_factors(self.factors)
        check_mode(self.mode)
        check_normalization(self.normalization)
        mean, shares = self.mean_tokens, self.factor_shares
        if (mean is None) == (shares is None):
            raise CalibrationError("mean_tokens, factor_shares: expected exactly one, got both or none")
        if mean is not None and not (math.isfinite(mean) and mean > 0):
            raise CalibrationError(f"mean_tokens: expected a finite number > 0, got {mean!r}")
        if shares is not None:
            check_shares(shares, len(self.factors))


class RunningCalibration:
    """Takes views in and keeps nothing of them but sigma and token counts, with the tokens a model adds to rows."""

    def __init__(self, settings: CalibrationSettings) -> None:
        self.settings = settings
        self._sigmas: list[torch.Tensor] = []
        self._tokens: list[list[int]] = []

    @property
    def num_views(self) -> int:
        """Views taken in."""
        return len(self._tokens)

    def add(self, features: Features) -> None:
        """More images [B, H, W, D], grids [H, W, D] or views, of any sizes; raises FeatureError."""
        settings = self.settings
        self._sigmas.append(sigmas_of_grids(features, settings.factors, settings.mode, settings.normalization).cpu())
        self._tokens += [[view.num_tokens(factor) for factor in settings.factors] for view in as_views(features)]

    def policy(self) -> ReductionPolicy:
        """The policy that the settings ask for, with the distribution over all views.

        Raises:
            CalibrationError: There was no image, or the wanted mean is out of reach.
        """
        if not self._tokens:
            raise CalibrationError("images: expected at least one image, got none")
        settings, sigmas = self.settings, torch.cat(self._sigmas)
        if settings.factor_shares is not None:
            tau = calibrate_shares(sigmas, settings.factor_shares, settings.mode)
        else:
            assert settings.mean_tokens is not None  # one of the two is there.
            tau = calibrate_tau(sigmas, self._tokens, settings.mean_tokens, settings.mode)
        seen = _distribution(sigmas, choose_indices(sigmas, tau, settings.mode), torch.tensor(self._tokens))
        return ReductionPolicy(
            tau=tau,
            mode=settings.mode,
            factors=settings.factors,
            normalization=settings.normalization,
            calibration=seen,
        )


def calibrate(
    feature_batches: Iterable[Features],
    mean_tokens: float | None = None,
    *,
    factor_shares: Mapping[int, float] | Sequence[float] | None = None,
    factors: Sequence[int] = DEFAULT_FACTORS,
    mode: str = "residual",
    normalization: str = "image",
) -> ReductionPolicy:
    """A policy calibrated on batches of features [B, H, W, D], of grids [H, W, D] or of views (see `views_of`).

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
    settings = CalibrationSettings(
        mean_tokens=mean_tokens,
        factor_shares=None if factor_shares is None else _share_tuple(factor_shares, factors),
        factors=factors,
        mode=mode,
        normalization=normalization,
    )
    running = RunningCalibration(settings)
    for features in feature_batches:
        running.add(features)
    return running.policy()


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


def _share_tuple(shares: Mapping[int, float] | Sequence[float], factors: tuple[int, ...]) -> tuple[float, ...]:
    if not isinstance(shares, Mapping):
        return tuple(shares)
    if not set(shares) <= set(factors):
        raise CalibrationError(f"factor_shares: expected factors of {list(factors)}, got {sorted(shares)}")
    return tuple(shares.get(factor, 0.0) for factor in factors)
