"""A calibration whose images come bit by bit."""

from collections.abc import Mapping, Sequence

import torch

from tokenreduce.calibration import calibrate_sigmas
from tokenreduce.errors import CalibrationError
from tokenreduce.policy import DEFAULT_FACTORS, ReductionPolicy, check_factors, check_mode, check_normalization
from tokenreduce.reducing import VisualGrid
from tokenreduce.view_plans import view_sigmas


class RunningCalibration:
    """Takes views in and keeps nothing of them but sigma and token counts, with the tokens a model adds to rows.

    Raises:
        PolicyError: factors, mode or normalization is out of range.
    """

    def __init__(
        self, *, factors: Sequence[int] = DEFAULT_FACTORS, mode: str = "residual", normalization: str = "image"
    ) -> None:
        self.factors, self.mode, self.normalization = tuple(factors), mode, normalization
        check_factors(self.factors)
        check_mode(mode)
        check_normalization(normalization)
        self._sigmas: list[torch.Tensor] = []
        self._tokens: list[list[int]] = []

    def add(self, views: Sequence[VisualGrid]) -> None:
        """More views, of grids of any sizes; raises FeatureError."""
        self._sigmas.append(view_sigmas(views, self.factors, self.mode, self.normalization).cpu())
        self._tokens += [[view.num_tokens(factor) for factor in self.factors] for view in views]

    def policy(
        self,
        mean_tokens: float | None = None,
        factor_shares: Mapping[int, float] | Sequence[float] | None = None,
    ) -> ReductionPolicy:
        """The policy for the wanted mean of tokens or the wanted shares, with the distribution over all views.

        Raises:
            CalibrationError: There was no view, or the wish is out of reach; see `calibrate`.
        """
        if not self._tokens:
            raise CalibrationError("images: expected at least one, got none")
        return calibrate_sigmas(
            torch.cat(self._sigmas),
            self._tokens,
            mean_tokens,
            factor_shares=factor_shares,
            factors=self.factors,
            mode=self.mode,
            normalization=self.normalization,
        )
