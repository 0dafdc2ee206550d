"""RTN: every weight to its nearest code."""

from dataclasses import dataclass
from typing import ClassVar

from quantpack.calibration.sites import Site, SiteResult
from quantpack.methods.checking import check_site
from quantpack.methods.grid import channel_ranking, nearest_codes


@dataclass(frozen=True, kw_only=True, slots=True)
class Nearest:
    """Round to nearest; calibration only ranks channels where the scheme asks for it."""

    needs_second_moment: ClassVar[bool] = False
    needs_gradients: ClassVar[bool] = False

    def quantize_site(self, site: Site) -> SiteResult:
        """Codes of every weight; no factor.

        Raises:
            CalibrationError: The activations do not fit the weights.
            WeightError: A weight cannot be quantized.
        """
        check_site(site)
        quantized = {}
        for name, weight in site.weights.items():
            ranking = channel_ranking(site, name)
            quantized[name] = nearest_codes(weight, site.schemes[name], name=name, ranking=ranking)
        return SiteResult(quantized=quantized)
