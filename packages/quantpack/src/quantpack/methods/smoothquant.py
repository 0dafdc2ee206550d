"""SmoothQuant's scaling, for weights alone, as the ECM paper ran it."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from quantpack.calibration.sites import Site, SiteResult
from quantpack.errors import SchemeError
from quantpack.methods.checking import check_site
from quantpack.methods.nearest import Nearest
from quantpack.methods.scaling import scale_site

_LEAST = 1e-5


@dataclass(frozen=True, kw_only=True, slots=True)
class SmoothQuant:
    """Moves the spread of activations into the weights by a fixed rule (Xiao et al. 2023, equation 4).

    It is made for quantized activations, which get easier as weights get harder. The ECM paper (Table 1) uses it on
    weights alone, one scale for the tensor, so only the cost shows: a large compression ratio and no accuracy.

    Attributes:
        alpha: How much of the spread moves; 0 to 1.
    """

    needs_second_moment: ClassVar[bool] = False
    needs_gradients: ClassVar[bool] = False

    alpha: float = 0.5

    def __post_init__(self) -> None:
        if not 0 <= self.alpha <= 1:
            raise SchemeError(f"alpha: expected 0 to 1, got {self.alpha!r}")

    def quantize_site(self, site: Site) -> SiteResult:
        """Nearest codes of the scaled weights, and the factor; no factor where the site takes none.

        Raises:
            CalibrationError: The activations do not fit the weights.
            WeightError: A weight cannot be quantized.
        """
        check_site(site)
        if not site.scalable:
            return Nearest().quantize_site(site)
        columns = torch.stack([weight.float().abs().amax(0) for weight in site.weights.values()]).amax(0)
        factor = smooth_factor(site.activations.max_abs, columns, self.alpha)
        scaled = Nearest().quantize_site(scale_site(site, factor))
        return SiteResult(quantized=scaled.quantized, factor=factor)


def smooth_factor(max_input: Tensor, max_weight: Tensor, alpha: float) -> Tensor:
    """max|x|^alpha / max|w|^(1 - alpha) of each input, [I] float32; weights are multiplied by it.

    Both maxima [I] are floored at 1e-5, so that a dead input or an empty column keeps a positive, finite factor.
    """
    spread = max_input.double().clamp(min=_LEAST).pow(alpha)
    return (spread / max_weight.double().clamp(min=_LEAST).pow(1 - alpha)).float()
