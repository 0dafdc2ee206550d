"""Affine quantization, round to nearest (ECM section 2; edge cases as this project decided them).

Shape letters: O rows, I columns, C channels (see `grouping`), G groups.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from quantpack.errors import WeightError
from quantpack.grouping import Grid, assign_channels
from quantpack.scheme import Scheme

SCALE_DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
# Weights turned to float32 at a time: an embedding of a gigabyte must not take four more.
_CHUNK = 1 << 22


@dataclass(frozen=True, kw_only=True, slots=True)
class QuantizedTensor:
    """The codes of a tensor, and what turns them back into weights.

    Attributes:
        codes: [O, I] int8 in the scheme's code range.
        scales: [G] in the source tensor's dtype, block after block.
        zeros: [G] int8, codes of weight 0; None when symmetric.
        channel_blocks: [C] uint8, the block of each channel; None where the scheme has one block.
        shape: The source tensor's shape; more than two dimensions are seen as [shape[0], the rest].
        scheme: How the codes were made.
    """

    codes: Tensor
    scales: Tensor
    zeros: Tensor | None
    channel_blocks: Tensor | None
    shape: tuple[int, ...]
    scheme: Scheme

    def grid(self, name: str = "weight") -> Grid:
        """The group of each weight."""
        return Grid.of((self.codes.shape[0], self.codes.shape[1]), self.scheme, self.channel_blocks, name)


@dataclass(frozen=True, kw_only=True, slots=True)
class AffineGrid:
    """Scales and zeros of a matrix, before any code is chosen.

    Attributes:
        grid: The group of each weight.
        scales: [G] in the dtype they are stored in, positive.
        zeros: [G] float32, whole numbers; None when symmetric.
        channel_blocks: [C] uint8, or None.
    """

    grid: Grid
    scales: Tensor
    zeros: Tensor | None
    channel_blocks: Tensor | None


def quantize_tensor(
    weight: Tensor, scheme: Scheme, *, name: str = "weight", importance: Tensor | None = None
) -> QuantizedTensor:
    """Nearest codes of a floating tensor [O, ...], computed in float32 with the scales as stored.

    Asymmetric: the range of a group is widened to span 0, scale = (max - min) / (2^bits - 1) and
    zero = clamp(-round(min / scale)). Symmetric: scale = max|w| / (2^(bits-1) - 1). Ties round to even.

    Args:
        weight: At least two dimensions and one element.
        scheme: What shares a scale, and whether there is a zero point.
        name: The tensor's name, for errors.
        importance: [C], ranks the channels of AGQ: max|X| of inputs (axis "in") or outputs ("out").
            None: max|w| of each channel. Other granularities do not look at it.

    Raises:
        WeightError: Wrong dtype or shape, or a weight that is NaN, infinite or outside float32.
    """
    matrix = _as_matrix(weight, name)
    found = affine_grid(matrix, scheme, name=name, importance=importance)
    lowest, highest = scheme.code_range
    scales = found.scales.float()
    codes = torch.empty(matrix.shape, dtype=torch.int8)
    for begin, end in row_chunks(*matrix.shape):
        steps = (matrix[begin:end].float() / found.grid.spread(scales, begin, end)).round_()
        if found.zeros is not None:
            steps += found.grid.spread(found.zeros, begin, end)
        codes[begin:end] = steps.clamp_(lowest, highest)
    return quantized_from_codes(codes, found, tuple(weight.shape), scheme)


def affine_grid(matrix: Tensor, scheme: Scheme, *, name: str, importance: Tensor | None = None) -> AffineGrid:
    """Scales and zeros of a matrix [O, I] as `quantize_tensor` chooses them.

    Raises:
        WeightError: A weight that is NaN, infinite or outside float32, or an importance of another shape.
    """
    blocks = _channel_blocks(matrix, scheme, name, importance)
    grid = Grid.of((matrix.shape[0], matrix.shape[1]), scheme, blocks, name)
    # One pass instead of a mask the size of the matrix: NaN and Inf survive min and max.
    low, high = grid.extremes(matrix, _rows_at_once(matrix.shape[1]))
    if not bool((torch.isfinite(low) & torch.isfinite(high)).all()):
        raise WeightError(f"{name}: expected finite weights in float32, got NaN or infinity")
    scales = _scales(low, high, scheme, matrix.dtype)
    zeros = None if scheme.symmetric else (-(low / scales.float()).round_()).clamp_(0, scheme.num_levels - 1)
    return AffineGrid(grid=grid, scales=scales, zeros=zeros, channel_blocks=blocks)


def quantized_from_codes(codes: Tensor, found: AffineGrid, shape: tuple[int, ...], scheme: Scheme) -> QuantizedTensor:
    """Codes [O, I] int8, chosen by whatever rounding, on a grid."""
    return QuantizedTensor(
        codes=codes,
        scales=found.scales,
        zeros=None if found.zeros is None else found.zeros.to(torch.int8),
        channel_blocks=found.channel_blocks,
        shape=shape,
        scheme=scheme,
    )


def dequantize(quantized: QuantizedTensor, dtype: torch.dtype | None = None) -> Tensor:
    """Weights (code - zero) * scale in the source shape; computed in float32, then cast once.

    Args:
        quantized: Codes, scales and zeros.
        dtype: Of the result; by default the source tensor's.
    """
    grid = quantized.grid()
    scales = quantized.scales.float()
    zeros = None if quantized.zeros is None else quantized.zeros.float()
    weights = torch.empty(quantized.codes.shape, dtype=dtype or quantized.scales.dtype)
    for begin, end in row_chunks(*quantized.codes.shape):
        part = quantized.codes[begin:end].float()
        if zeros is not None:
            part -= grid.spread(zeros, begin, end)
        weights[begin:end] = part.mul_(grid.spread(scales, begin, end))
    return weights.reshape(quantized.shape)


def row_chunks(num_rows: int, num_cols: int) -> list[tuple[int, int]]:
    """(begin, end) of rows to work on at a time; each begins at a whole byte of codes packed two a byte."""
    step = _rows_at_once(num_cols)
    return [(begin, min(begin + step, num_rows)) for begin in range(0, num_rows, step)]


def _rows_at_once(num_cols: int) -> int:
    return max(2, _CHUNK // max(num_cols, 1) // 2 * 2)


def _as_matrix(weight: Tensor, name: str) -> Tensor:
    if weight.dtype not in SCALE_DTYPES or weight.dim() < 2 or weight.numel() == 0:
        raise WeightError(
            f"{name}: expected a floating tensor of two or more dimensions, got {weight.dtype} {list(weight.shape)}"
        )
    return weight.detach().reshape(weight.shape[0], -1)


def _channel_blocks(matrix: Tensor, scheme: Scheme, name: str, importance: Tensor | None) -> Tensor | None:
    if len(scheme.layout()) == 1:
        return None
    along = 1 if scheme.axis == "out" else 0
    if importance is None:
        low, high = torch.aminmax(matrix, dim=along)
        importance = torch.maximum(high.float(), -low.float())
    if importance.shape != (matrix.shape[1 - along],) or not bool(torch.isfinite(importance).all()):
        raise WeightError(
            f"{name}: expected a finite importance for each of {matrix.shape[1 - along]} channels, "
            f"got {list(importance.shape)}"
        )
    return assign_channels(importance, scheme)


def _scales(low: Tensor, high: Tensor, scheme: Scheme, dtype: torch.dtype) -> Tensor:
    """Scales [G] of groups from low [G] <= 0 to high [G] >= 0, in the dtype they are stored in; all positive."""
    if scheme.symmetric:
        exact = torch.maximum(high, -low) / (scheme.num_levels // 2 - 1)
    else:
        steps = scheme.num_levels - 1
        exact = (high - low) / steps
        # high - low overflows near the end of float32's range; the divided parts do not.
        exact = torch.where(exact.isinf(), high / steps - low / steps, exact)
    stored = exact.to(dtype)
    # A scale that rounds to 0 takes the smallest positive number; a group of zeros needs no scale, so any will do.
    smallest = torch.finfo(dtype).smallest_normal * torch.finfo(dtype).eps
    stored = torch.where(stored == 0, torch.full_like(stored, smallest), stored)
    return torch.where((high == 0) & (low == 0), torch.ones_like(stored), stored)
