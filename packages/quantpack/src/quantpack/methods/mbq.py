"""MBQ: AWQ's search, with visual and text tokens weighed by how much the model's loss feels them."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from quantpack.calibration.sites import Site, SiteResult
from quantpack.errors import SchemeError
from quantpack.methods.checking import check_site
from quantpack.methods.factor_search import search_factor
from quantpack.methods.nearest import Nearest
from quantpack.methods.scaling import scale_site


@dataclass(frozen=True, kw_only=True, slots=True)
class Mbq:
    """Modality-balanced quantization of weights (Li et al. 2024).

    The factor is searched as in AWQ, by the mean absolute instead of the mean squared output error, and the error of a
    visual token counts `Site.visual_weight` times that of a text token. There is no clip search.

    MBQ's authors leave the vision encoder alone. "MBQ on the vision encoder" means here: every token of the encoder is
    visual and the weight is 1, so it is the same search by the mean absolute error with nothing to balance. A weight
    common to all tokens would not change which factor wins.

    Attributes:
        num_ratios: Exponents tried.
    """

    needs_second_moment: ClassVar[bool] = False
    needs_gradients: ClassVar[bool] = True

    num_ratios: int = 20

    def __post_init__(self) -> None:
        if self.num_ratios < 1:
            raise SchemeError(f"num_ratios: expected at least 1, got {self.num_ratios!r}")

    def quantize_site(self, site: Site) -> SiteResult:
        """Nearest codes of the scaled weights, and the factor; no factor where the site takes none.

        Raises:
            CalibrationError: The activations do not fit the weights.
            WeightError: A weight cannot be quantized.
        """
        check_site(site, samples=True)
        if not site.scalable:
            return Nearest().quantize_site(site)
        token_weights = torch.where(site.activations.is_visual, site.visual_weight, 1.0)

        def loss(errors: Tensor) -> Tensor:
            return token_weights @ errors.abs_().sum(1)

        factor = search_factor(site, self.num_ratios, loss)
        scaled = Nearest().quantize_site(scale_site(site, factor))
        return SiteResult(quantized=scaled.quantized, factor=factor)
