"""INT4 affine quantization, round to nearest (ECM section 2; edge cases as this project decided them).

Shape letters: O rows, I columns, [R, G] the grid of groups, g the weights of one group.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from quantpack.errors import WeightError
from quantpack.grouping import join_groups, split_groups, spread
from quantpack.scheme import NUM_LEVELS, Scheme

SCALE_DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
_SYMMETRIC_MAX = NUM_LEVELS // 2 - 1


@dataclass(frozen=True, kw_only=True, slots=True)
class QuantizedTensor:
    """The codes of a tensor, and what turns them back into weights.

    Attributes:
        codes: [O, I] int8; 0..15, or -8..7 when symmetric.
        scales: [R, G] in the source tensor's dtype.
        zeros: [R, G] int8 in 0..15; None when symmetric.
        shape: The source tensor's shape; more than two dimensions are seen as [shape[0], the rest].
        scheme: How the codes were made.
    """

    codes: Tensor
    scales: Tensor
    zeros: Tensor | None
    shape: tuple[int, ...]
    scheme: Scheme


def quantize(weight: Tensor, scheme: Scheme, *, name: str = "weight") -> QuantizedTensor:
    """Nearest 4-bit codes of a floating tensor [O, ...], computed in float32 with the scales as stored.

    Asymmetric: the range of a group is widened to span 0, scale = (max - min) / 15 and
    zero = clamp(-round(min / scale), 0, 15). Symmetric: scale = max|w| / 7. Ties round to even.

    Args:
        weight: At least two dimensions and one element.
        scheme: What shares a scale, and whether there is a zero point.
        name: The tensor's name, for errors.

    Raises:
        WeightError: Wrong dtype or shape, or a weight that is NaN, infinite or outside float32.
    """
    if weight.dtype not in SCALE_DTYPES or weight.dim() < 2 or weight.numel() == 0:
        raise WeightError(
            f"{name}: expected a floating tensor of two or more dimensions, got {weight.dtype} {list(weight.shape)}"
        )
    matrix = weight.detach().reshape(weight.shape[0], -1).float()
    # One pass instead of a mask the size of the matrix: NaN and Inf survive min and max.
    low, high = torch.aminmax(matrix)
    if not (torch.isfinite(low) and torch.isfinite(high)):
        raise WeightError(f"{name}: expected finite weights in float32, got NaN or infinity")
    groups = split_groups(matrix, scheme)
    scales = _scales(groups, scheme, weight.dtype)
    scales_f32 = scales.float()
    steps = (groups / scales_f32.unsqueeze(-1)).round_()
    zeros: Tensor | None = None
    if scheme.symmetric:
        steps.clamp_(-_SYMMETRIC_MAX - 1, _SYMMETRIC_MAX)
    else:
        lowest = groups.amin(-1).clamp_(max=0)
        zeros_f32 = (-(lowest / scales_f32).round_()).clamp_(0, NUM_LEVELS - 1)
        steps.add_(zeros_f32.unsqueeze(-1)).clamp_(0, NUM_LEVELS - 1)
        zeros = zeros_f32.to(torch.int8)
    codes = join_groups(steps.to(torch.int8), *matrix.shape)
    return QuantizedTensor(codes=codes, scales=scales, zeros=zeros, shape=tuple(weight.shape), scheme=scheme)


def dequantize(quantized: QuantizedTensor, dtype: torch.dtype | None = None) -> Tensor:
    """Weights (code - zero) * scale in the source shape; computed in float32, then cast once.

    Args:
        quantized: Codes, scales and zeros.
        dtype: Of the result; by default the source tensor's.
    """
    num_rows, num_cols = quantized.codes.shape
    weights = quantized.codes.float()
    if quantized.zeros is not None:
        weights -= spread(quantized.zeros, num_rows, num_cols, quantized.scheme)
    weights *= spread(quantized.scales.float(), num_rows, num_cols, quantized.scheme)
    return weights.to(dtype or quantized.scales.dtype).reshape(quantized.shape)


def _scales(groups: Tensor, scheme: Scheme, dtype: torch.dtype) -> Tensor:
    """Scales [R, G] of groups [R, G, g] in the dtype they are stored in; all positive."""
    low = groups.amin(-1).clamp_(max=0)
    high = groups.amax(-1).clamp_(min=0)
    if scheme.symmetric:
        exact = torch.maximum(high, -low) / _SYMMETRIC_MAX
    else:
        exact = (high - low) / (NUM_LEVELS - 1)
        # high - low overflows near the end of float32's range; the divided parts do not.
        exact = torch.where(exact.isinf(), high / (NUM_LEVELS - 1) - low / (NUM_LEVELS - 1), exact)
    stored = exact.to(dtype)
    # A scale that rounds to 0 takes the smallest positive number; a group of zeros needs no scale, so any will do.
    smallest = torch.finfo(dtype).smallest_normal * torch.finfo(dtype).eps
    stored = torch.where(stored == 0, torch.full_like(stored, smallest), stored)
    return torch.where((high == 0) & (low == 0), torch.ones_like(stored), stored)
