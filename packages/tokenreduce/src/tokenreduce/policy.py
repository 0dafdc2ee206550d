"""How many visual tokens an image gets: the policy, checked once and passed around unchanged."""

import itertools
import math
from dataclasses import dataclass

from tokenreduce.errors import PolicyError

METHOD = "dfmr"
MODES = ("residual", "literal")
NORMALIZATIONS = ("image", "none")
DEFAULT_FACTORS = (1, 2, 3)


@dataclass(frozen=True, kw_only=True, slots=True)
class ReductionPolicy:
    """Everything that decides how many visual tokens an image gets.

    Attributes:
        tau: Threshold on sigma, in units of the normalised features; greater than 0.
        mode: "residual" or "literal"; see `tokenreduce.dfmr`.
        factors: Pooling factors to choose from, ascending, from 1.
        normalization: "image" or "none"; see `tokenreduce.sigma_per_factor`.
        calibrated_mean_tokens: Mean tokens an image had over the calibration images; 0 when not calibrated.
        method: Name of the reducer; "dfmr" is the only one.

    Raises:
        PolicyError: A field is out of its range.
    """

    tau: float
    mode: str = "residual"
    factors: tuple[int, ...] = DEFAULT_FACTORS
    normalization: str = "image"
    calibrated_mean_tokens: float = 0.0
    method: str = METHOD

    def __post_init__(self) -> None:
        if self.method != METHOD:
            raise PolicyError(f"method: expected {METHOD!r}, got {self.method!r}")
        check_tau(self.tau)
        check_mode(self.mode)
        check_factors(self.factors)
        check_normalization(self.normalization)
        mean = self.calibrated_mean_tokens
        if not (math.isfinite(mean) and mean >= 0):
            raise PolicyError(f"calibrated_mean_tokens: expected a finite number >= 0, got {mean!r}")


def check_tau(tau: float) -> None:
    """Raises PolicyError unless `tau` is a finite number greater than 0."""
    if not (math.isfinite(tau) and tau > 0):
        raise PolicyError(f"tau: expected a finite number > 0, got {tau!r}")


def check_mode(mode: str) -> None:
    """Raises PolicyError unless `mode` is known."""
    if mode not in MODES:
        raise PolicyError(f"mode: expected one of {', '.join(MODES)}, got {mode!r}")


def check_normalization(normalization: str) -> None:
    """Raises PolicyError unless `normalization` is known."""
    if normalization not in NORMALIZATIONS:
        raise PolicyError(f"normalization: expected one of {', '.join(NORMALIZATIONS)}, got {normalization!r}")


def check_factors(factors: tuple[int, ...]) -> None:
    """Raises PolicyError unless `factors` are ascending integers from 1 (factor 1 leaves an image as it is)."""
    ascending = all(left < right for left, right in itertools.pairwise(factors))
    if not factors or factors[0] != 1 or not ascending or any(type(factor) is not int for factor in factors):
        raise PolicyError(f"factors: expected ascending integers from 1, got {list(factors)!r}")
