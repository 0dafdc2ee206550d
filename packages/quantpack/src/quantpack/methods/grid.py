"""The only door from the methods to the quantizer: a weight's grid, and codes laid on it.

Shape letters: S sampled tokens, O outputs, I inputs, C channels, G groups of weights that share a scale.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from quantpack.affine import (
    AffineGrid,
    QuantizedTensor,
    affine_grid,
    dequantize,
    quantize_tensor,
    quantized_from_codes,
)
from quantpack.calibration.sites import Site
from quantpack.scheme import Scheme


@dataclass(frozen=True, kw_only=True, slots=True)
class WeightGrid:
    """Where the codes of a weight [O, I] may lie: (code - zero) * scale.

    Attributes:
        scale: [O, I] float32, each weight's; positive.
        zero: [O, I] float32, whole numbers; 0 when symmetric.
        scheme: How the grid was made.
        found: The grid as it is stored.
    """

    scale: Tensor
    zero: Tensor
    scheme: Scheme
    found: AffineGrid

    def with_codes(self, codes: Tensor) -> QuantizedTensor:
        """Codes [O, I] int8 on this grid, however they were chosen."""
        shape = (codes.shape[0], codes.shape[1])
        return quantized_from_codes(codes, self.found, shape, self.scheme)


def channel_ranking(site: Site, name: str) -> Tensor | None:
    """What ranks the channels of a weight for AGQ, [C] (ECM section 3.2); None where nothing is ranked.

    Axis "in": max|x| of each input. Axis "out": max|x w| of each output over the sampled tokens, for no input belongs
    to one output; None without samples, and the weights then rank themselves.
    """
    scheme = site.schemes[name]
    if scheme.granularity != "agq":
        return None
    if scheme.axis == "in":
        return site.activations.max_abs
    samples = site.activations.samples
    return (samples @ site.weights[name].float().T).abs_().amax(0) if len(samples) else None


def nearest_codes(weight: Tensor, scheme: Scheme, *, name: str, ranking: Tensor | None) -> QuantizedTensor:
    """The weight [O, I] rounded to nearest; scales are rounded to the weight's dtype."""
    return quantize_tensor(weight, scheme, name=name, importance=ranking)


def fake_quantize(weight: Tensor, scheme: Scheme, *, name: str, ranking: Tensor | None) -> Tensor:
    """What `nearest_codes` stand for, [O, I] float32."""
    return dequantize(nearest_codes(weight, scheme, name=name, ranking=ranking), torch.float32)


def fit_grid(weight: Tensor, scheme: Scheme, *, name: str, ranking: Tensor | None) -> WeightGrid:
    """The grid that `nearest_codes` rounds to."""
    found = affine_grid(weight, scheme, name=name, importance=ranking)
    zero = torch.zeros(1, 1).expand(weight.shape) if found.zeros is None else found.grid.spread(found.zeros)
    return WeightGrid(scale=found.grid.spread(found.scales.float()), zero=zero, scheme=scheme, found=found)
