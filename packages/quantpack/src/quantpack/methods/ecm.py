"""ECM: weights scaled by max|x|^alpha, on any granularity."""

from dataclasses import dataclass
from typing import ClassVar, Literal, get_args

from quantpack.calibration.sites import Method, Site, SiteResult
from quantpack.errors import SchemeError
from quantpack.methods.checking import check_site
from quantpack.methods.gptq import Gptq
from quantpack.methods.nearest import Nearest
from quantpack.methods.scaling import power_factor, scale_site

Rounding = Literal["nearest", "gptq"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Ecm:
    """The weight scaling of ECM section 3.3, then rounding on the scheme's grid (section 3.2: AGQ).

    Every step after the scaling sees the site as it is once the op before has taken the inverse: AGQ ranks channels by
    max|x| / factor, and error feedback uses the second moment of x / factor.

    Attributes:
        alpha: Exponent of max|x|; 0 leaves the weights as they are. Found by a search over 0, 0.1, .. 1.
        rounding: "nearest", or "gptq" for error feedback with its default settings.
    """

    needs_gradients: ClassVar[bool] = False

    alpha: float = 0.0
    rounding: Rounding = "nearest"

    def __post_init__(self) -> None:
        if not 0 <= self.alpha <= 1:
            raise SchemeError(f"alpha: expected 0 to 1, got {self.alpha!r}")
        if self.rounding not in get_args(Rounding):
            raise SchemeError(f"rounding: expected one of {', '.join(get_args(Rounding))}, got {self.rounding!r}")

    @property
    def needs_second_moment(self) -> bool:
        """True with error feedback."""
        return self.rounding == "gptq"

    def quantize_site(self, site: Site) -> SiteResult:
        """Codes of the scaled weights, and the factor; no factor for alpha 0 or where the site takes none.

        Raises:
            CalibrationError: The activations do not fit the weights.
            WeightError: A weight cannot be quantized.
        """
        check_site(site)
        rounding: Method = Gptq() if self.rounding == "gptq" else Nearest()
        if self.alpha == 0 or not site.scalable:
            return rounding.quantize_site(site)
        factor = power_factor(site.activations.max_abs, self.alpha)
        scaled = rounding.quantize_site(scale_site(site, factor))
        return SiteResult(quantized=scaled.quantized, factor=factor)
