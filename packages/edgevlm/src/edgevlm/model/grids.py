"""Grids of visual tokens: how an image's own grid maps to the cells of a smaller one.

Shapes: I images, N visual tokens of an image in raster order, padding last; M compressed tokens.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor


def most_square(num_tokens: int) -> tuple[int, int]:
    """Rows and columns, rows first and fewer, of the most nearly square grid of this many tokens."""
    rows = next(rows for rows in range(math.isqrt(num_tokens), 0, -1) if num_tokens % rows == 0)
    return rows, num_tokens // rows


def averaging_matrix(num_inputs: int, num_outputs: int) -> Tensor:
    """Rows that average neighbouring tokens, [M, N].

    A square number of tokens is taken as a square grid and averaged over the most nearly square
    grid of M cells; any other number is averaged along the raster order.
    """
    side = math.isqrt(num_inputs)
    units = torch.eye(num_inputs)
    if side * side != num_inputs:
        return F.adaptive_avg_pool1d(units, num_outputs).T.contiguous()
    cells = F.adaptive_avg_pool2d(units.view(num_inputs, 1, side, side), most_square(num_outputs))
    return cells.flatten(1).T.contiguous()


def area_matrices(shapes_i2: Tensor, grid: tuple[int, int], num_inputs: int) -> Tensor:
    """Weights [I, cells, N] that resample each image's own grid to another by area.

    A cell is the mean of what it covers, a token that it covers in part counting in part; so cells
    of cells are cells, and every row sums to 1. Padding is not covered.

    Args:
        shapes_i2: Rows and columns of each image, at most N tokens.
        grid: Rows and columns to resample to; may be more than the image has.
        num_inputs: N.
    """
    rows, columns = (_overlaps(shapes_i2[:, axis], grid[axis], num_inputs) for axis in (0, 1))
    token_n = torch.arange(num_inputs, device=shapes_i2.device)
    row_in, column_in = token_n // shapes_i2[:, 1:], token_n % shapes_i2[:, 1:]
    of_rows = rows.gather(2, row_in[:, None].expand(-1, grid[0], -1))
    of_columns = columns.gather(2, column_in[:, None].expand(-1, grid[1], -1))
    return (of_rows[:, :, None] * of_columns[:, None]).flatten(1, 2)


def _overlaps(lengths_i: Tensor, num_cells: int, num_inputs: int) -> Tensor:
    """Share of each cell of a line that each of its tokens covers, [I, cells, N]; none past the line's end."""
    length = lengths_i.double()[:, None, None]
    cell = torch.arange(num_cells, device=lengths_i.device, dtype=torch.float64)[:, None] * length / num_cells
    token = torch.arange(num_inputs, device=lengths_i.device, dtype=torch.float64)
    covered = torch.minimum(cell + length / num_cells, token + 1) - torch.maximum(cell, token)
    return covered.clamp(min=0) * (token < length) * num_cells / length


def mean_places(weights_mn: Tensor) -> Tensor:
    """The mean input of each output, floored, int64 [..., M]; weights [..., M, N] whose rows sum to 1."""
    places = torch.arange(weights_mn.shape[-1], dtype=torch.float64, device=weights_mn.device)
    # A mean that rounding has put just under a whole number is that number.
    return (weights_mn.double() @ places + 1e-6).long()
