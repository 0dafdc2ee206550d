"""What a method sees of a model: linear layers that share one input, and what that input looked like.

Shape letters: N calibration tokens, S sampled tokens, O outputs, I inputs.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from quantpack.affine import QuantizedTensor
from quantpack.scheme import Scheme


@dataclass(frozen=True, kw_only=True, slots=True)
class Activations:
    """The input of a site over all calibration tokens; padding is left out.

    Attributes:
        num_tokens: N.
        max_abs: [I] float32, max|x| over the tokens.
        mean_abs: [I] float32, mean|x| over the tokens.
        second_moment: [I, I] float32, the mean of x x^T; None when no method asked for it.
        samples: [S, I] float32, tokens drawn evenly with a fixed seed.
        is_visual: [S] bool, True where the sampled token stands for a piece of an image.
    """

    num_tokens: int
    max_abs: Tensor
    mean_abs: Tensor
    second_moment: Tensor | None
    samples: Tensor
    is_visual: Tensor


@dataclass(frozen=True, kw_only=True, slots=True)
class Site:
    """Linear layers that read the same input.

    Attributes:
        weights: [O, I] of each layer, by the name of its weight.
        schemes: How each weight is to be quantized, by the same names.
        activations: Their input.
        scalable: True where an op before the site can take the inverse of a factor per input channel.
        visual_weight: |gradient| of visual over text tokens at this site (MBQ); 1 when not measured.
    """

    weights: Mapping[str, Tensor]
    schemes: Mapping[str, Scheme]
    activations: Activations
    scalable: bool
    visual_weight: float = 1.0


@dataclass(frozen=True, kw_only=True, slots=True)
class SiteResult:
    """What a method made of a site.

    Attributes:
        quantized: The codes of weight * factor, by name.
        factor: [I] float32, positive; the op before the site must divide by it. None: unchanged.
    """

    quantized: Mapping[str, QuantizedTensor]
    factor: Tensor | None = None


class Method(Protocol):
    """Finds the codes of a site's weights; a frozen dataclass that holds its settings."""

    @property
    def needs_second_moment(self) -> bool:
        """True when it reads `Activations.second_moment`."""
        ...

    @property
    def needs_gradients(self) -> bool:
        """True when it reads `Site.visual_weight`."""
        ...

    def quantize_site(self, site: Site) -> SiteResult:
        """Codes for every weight of the site; weights are not changed."""
        ...
