"""How many visual tokens an image gets: the policy, checked once and passed around unchanged."""

import itertools
import math
from dataclasses import dataclass

from tokenreduce.errors import PolicyError

METHOD = "dfmr"
MODES = ("residual", "literal")
NORMALIZATIONS = ("image", "none")
DEFAULT_FACTORS = (1, 2, 3)
# The smallest, every tenth percent between, the largest.
NUM_DECILES = 11


@dataclass(frozen=True, kw_only=True, slots=True)
class CalibrationDistribution:
    """What a policy did to the images it was calibrated on.

    Attributes:
        num_images: Images seen.
        mean_tokens: Mean of each image's visual tokens under the policy.
        shares: Share of the images at each of the policy's factors; F numbers that add up to 1.
        deciles: sigma at 0, 10, ..., 100% of the images, for each factor; F times 11, ascending.

    Raises:
        PolicyError: A field is out of its range.
    """

    num_images: int
    mean_tokens: float
    shares: tuple[float, ...]
    deciles: tuple[tuple[float, ...], ...]

    def __post_init__(self) -> None:
        if self.num_images < 1:
            raise PolicyError(f"calibration.num_images: expected at least 1, got {self.num_images!r}")
        if not (math.isfinite(self.mean_tokens) and self.mean_tokens > 0):
            raise PolicyError(f"calibration.mean_tokens: expected a finite number > 0, got {self.mean_tokens!r}")
        if not all(0 <= share <= 1 for share in self.shares) or not math.isclose(sum(self.shares), 1, rel_tol=1e-6):
            raise PolicyError(f"calibration.shares: expected numbers that add up to 1, got {list(self.shares)!r}")
        if len(self.deciles) != len(self.shares):
            raise PolicyError(f"calibration.deciles: expected {len(self.shares)} rows, got {len(self.deciles)}")
        for row in self.deciles:
            ascending = all(0 <= low <= high < math.inf for low, high in itertools.pairwise(row))
            if len(row) != NUM_DECILES or not ascending:
                raise PolicyError(
                    f"calibration.deciles: expected {NUM_DECILES} ascending finite numbers >= 0, got {list(row)!r}"
                )


@dataclass(frozen=True, kw_only=True, slots=True)
class ReductionPolicy:
    """Everything that decides how many visual tokens an image gets.

    Attributes:
        tau: Threshold on sigma, in units of the normalised features; greater than 0.
        mode: "residual" or "literal"; see `tokenreduce.dfmr`.
        factors: Pooling factors to choose from, ascending, from 1.
        normalization: "image" or "none"; see `tokenreduce.sigma_per_factor`.
        calibration: What it did to the images it was calibrated on; None when not calibrated.
        method: Name of the reducer; "dfmr" is the only one.

    Raises:
        PolicyError: A field is out of its range.
    """

    tau: float
    mode: str = "residual"
    factors: tuple[int, ...] = DEFAULT_FACTORS
    normalization: str = "image"
    calibration: CalibrationDistribution | None = None
    method: str = METHOD

    def __post_init__(self) -> None:
        if self.method != METHOD:
            raise PolicyError(f"method: expected {METHOD!r}, got {self.method!r}")
        check_tau(self.tau)
        check_mode(self.mode)
        check_factors(self.factors)
        check_normalization(self.normalization)
        if self.calibration is not None and len(self.calibration.shares) != len(self.factors):
            raise PolicyError(
                f"calibration.shares: expected {len(self.factors)}, one a factor, got {len(self.calibration.shares)}"
            )

    @property
    def calibrated_mean_tokens(self) -> float:
        """Mean tokens an image had over the calibration images; 0 when not calibrated."""
        return 0.0 if self.calibration is None else self.calibration.mean_tokens


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
