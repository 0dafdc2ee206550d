"""AWQ: a searched factor per input channel, then a searched clip per group."""

import re
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from quantpack.calibration.sites import Site, SiteResult
from quantpack.errors import SchemeError
from quantpack.methods.checking import check_site
from quantpack.methods.clipping import clip_weight
from quantpack.methods.factor_search import search_factor
from quantpack.methods.grid import channel_ranking, nearest_codes
from quantpack.methods.scaling import scale_site

# The authors leave queries and keys uncut: their error meets another's in a product, and no sample shows that here.
_QUERY_OR_KEY = re.compile(r"(^|[._])(q|k)(_proj)?\.|(^|\.)(to_q|to_k|query|key)\.")
_MOST_CLIPS = 19


@dataclass(frozen=True, kw_only=True, slots=True)
class Awq:
    """Activation-aware weight quantization (Lin et al. 2024, section 3), as its authors' code runs it.

    The factor is mean|x|^ratio with the ratio that gives the least mean squared output error; then each group of
    weights is cut where that lowers the error further. Clipping is skipped for queries and keys, and with axis "in".

    Attributes:
        num_ratios: Exponents tried: 0, 1 / num_ratios, ...
        num_clips: Clips tried: 1, 0.95, ... of the largest weight; 1 cuts nothing.
    """

    needs_second_moment: ClassVar[bool] = False
    needs_gradients: ClassVar[bool] = False

    num_ratios: int = 20
    num_clips: int = 10

    def __post_init__(self) -> None:
        if self.num_ratios < 1:
            raise SchemeError(f"num_ratios: expected at least 1, got {self.num_ratios!r}")
        if not 1 <= self.num_clips <= _MOST_CLIPS:
            raise SchemeError(f"num_clips: expected 1 to {_MOST_CLIPS}, got {self.num_clips!r}")

    def quantize_site(self, site: Site) -> SiteResult:
        """Nearest codes of the scaled and cut weights, and the factor; no factor where the site takes none.

        Raises:
            CalibrationError: The activations do not fit the weights.
            WeightError: A weight cannot be quantized.
        """
        check_site(site, samples=True)
        factor = None
        if site.scalable:
            factor = search_factor(site, self.num_ratios, _squared)
            site = scale_site(site, factor)
        quantized = {}
        for name, weight in site.weights.items():
            scheme, ranking = site.schemes[name], channel_ranking(site, name)
            if self.num_clips > 1 and scheme.axis == "out" and not _QUERY_OR_KEY.search(name):
                samples = site.activations.samples
                weight = clip_weight(weight, scheme, samples, self.num_clips, name=name, ranking=ranking)
            quantized[name] = nearest_codes(weight, scheme, name=name, ranking=ranking)
        return SiteResult(quantized=quantized, factor=factor)


def _squared(errors: Tensor) -> Tensor:
    return errors.square_().sum()
