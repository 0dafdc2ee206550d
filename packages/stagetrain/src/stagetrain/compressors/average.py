"""Average pooling, the paper's choice: windows of neighbours in raster order, or rectangles of the grid."""

import math

import torch

from stagetrain.compressors.compressor import Compressor, Units


class AveragePool(Compressor):
    """Windows of `stride` neighbours in raster order (section 3.2)."""

    name = "average"

    def assign(self, units: Units, stride: int) -> torch.Tensor:
        """See `Compressor.assign`."""
        slots = torch.arange(units.num_tokens, device=units.states.device) // stride
        return slots.expand(len(units.states), -1)


class GridAveragePool(Compressor):
    """Rectangles of `window(stride)` rows and columns; what remains at the right and below makes smaller ones."""

    name = "average_2d"

    def count(self, sides: tuple[int, int], stride: int) -> int:
        """See `Compressor.count`."""
        height, width = window(stride)
        return math.ceil(sides[0] / height) * math.ceil(sides[1] / width)

    def assign(self, units: Units, stride: int) -> torch.Tensor:
        """See `Compressor.assign`."""
        (rows, columns), (height, width) = units.sides, window(stride)
        device = units.states.device
        row = torch.arange(rows, device=device)[:, None] // height
        column = torch.arange(columns, device=device) // width
        slots = row * math.ceil(columns / width) + column
        return slots.flatten().expand(len(units.states), -1)


def window(stride: int) -> tuple[int, int]:
    """Rows and columns of the rectangle of `stride` tokens that is nearest to a square, no higher than wide."""
    height = next(side for side in range(math.isqrt(stride), 0, -1) if stride % side == 0)
    return height, stride // height
