"""GPTQ: rounding that lets later inputs make up for the error of earlier ones."""

import math
from dataclasses import dataclass
from typing import ClassVar

from quantpack.calibration.sites import Site, SiteResult
from quantpack.errors import SchemeError
from quantpack.methods.checking import check_site
from quantpack.methods.feedback import factorize, feed_back
from quantpack.methods.grid import channel_ranking, fit_grid


@dataclass(frozen=True, kw_only=True, slots=True)
class Gptq:
    """Error feedback on a static grid (Frantar et al. 2022, Algorithm 1).

    The grid of every weight is fixed from the whole matrix before the first input is rounded, not refitted group by
    group on the way. So scales and zeros are exactly those of nearest rounding, whatever the scheme: a scale that the
    whole matrix, several rows or scattered channels share has no moment at which "its" inputs are reached, and
    activation order may visit the inputs of a group in any sequence.

    Attributes:
        damping: Added to the second moment's diagonal, relative to the diagonal's mean.
        block_size: Inputs rounded between two large matrix products.
        activation_order: True: inputs with the largest second moment first.
    """

    needs_second_moment: ClassVar[bool] = True
    needs_gradients: ClassVar[bool] = False

    damping: float = 0.01
    block_size: int = 128
    activation_order: bool = False

    def __post_init__(self) -> None:
        if not (math.isfinite(self.damping) and self.damping >= 0):
            raise SchemeError(f"damping: expected a finite number of at least 0, got {self.damping!r}")
        if self.block_size < 1:
            raise SchemeError(f"block_size: expected at least 1, got {self.block_size!r}")

    def quantize_site(self, site: Site) -> SiteResult:
        """Codes of every weight; no factor.

        Raises:
            CalibrationError: The activations do not fit the weights, or the second moment is of no use.
            WeightError: A weight cannot be quantized.
        """
        check_site(site, second_moment=True)
        second_moment = site.activations.second_moment
        assert second_moment is not None
        feedback = factorize(
            second_moment, damping=self.damping, activation_order=self.activation_order, name=min(site.weights)
        )
        quantized = {}
        for name, weight in site.weights.items():
            scheme = site.schemes[name]
            grid = fit_grid(weight, scheme, name=name, ranking=channel_ranking(site, name))
            codes = feed_back(weight, grid.scale, grid.zero, *scheme.code_range, feedback, self.block_size)
            quantized[name] = grid.with_codes(codes)
        return SiteResult(quantized=quantized)
