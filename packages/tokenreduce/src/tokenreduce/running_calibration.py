"""A calibration whose images come bit by bit."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from tokenreduce.calibration import calibrate_sigmas
from tokenreduce.errors import CalibrationError
from tokenreduce.planning import view_sigmas
from tokenreduce.policy import DEFAULT_FACTORS, ReductionPolicy, check_factors, check_mode, check_normalization
from tokenreduce.reducing import VisualGrid


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
        if shares is None:
            return
        if len(shares) != len(self.factors):
            raise CalibrationError(f"factor_shares: expected {len(self.factors)}, one a factor, got {len(shares)}")
        if not all(0 <= share <= 1 for share in shares) or not math.isclose(sum(shares), 1, rel_tol=1e-6):
            raise CalibrationError(f"factor_shares: expected numbers from 0 that add up to 1, got {list(shares)}")


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

    def add(self, views: Sequence[VisualGrid]) -> None:
        """More views, of grids of any sizes; raises FeatureError."""
        settings = self.settings
        self._sigmas.append(view_sigmas(views, settings.factors, settings.mode, settings.normalization).cpu())
        self._tokens += [[view.num_tokens(factor) for factor in settings.factors] for view in views]

    def policy(self) -> ReductionPolicy:
        """The policy that the settings ask for, with the distribution over all views.

        Raises:
            CalibrationError: There was no view, or the wanted mean is out of reach.
        """
        if not self._tokens:
            raise CalibrationError("images: expected at least one, got none")
        settings = self.settings
        return calibrate_sigmas(
            torch.cat(self._sigmas),
            self._tokens,
            settings.mean_tokens,
            factor_shares=settings.factor_shares,
            factors=settings.factors,
            mode=settings.mode,
            normalization=settings.normalization,
        )
