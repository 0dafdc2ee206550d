"""Views a matrix as groups of weights that share one scale.

Shape letters: O rows (outputs), I columns (inputs); [R, G] is the grid of groups, g the weights of one.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from quantpack.scheme import Scheme


def group_grid(num_rows: int, num_cols: int, scheme: Scheme) -> tuple[int, int]:
    """The grid [R, G] of groups of an [O, I] matrix; a row's last group may be shorter than the others."""
    if scheme.granularity == "tensor":
        return 1, 1
    if scheme.granularity == "channel":
        return num_rows, 1
    return num_rows, -(-num_cols // scheme.group_size)


def split_groups(matrix: Tensor, scheme: Scheme) -> Tensor:
    """[O, I] -> [R, G, g]; a short last group is filled up with zeros.

    Zeros change no group's scale: the range of every group spans 0 anyway.
    """
    num_rows, num_cols = matrix.shape
    if scheme.granularity == "tensor":
        return matrix.reshape(1, 1, -1)
    if scheme.granularity == "channel":
        return matrix.reshape(num_rows, 1, num_cols)
    size = min(scheme.group_size, num_cols)
    padded = F.pad(matrix, (0, -num_cols % size))
    return padded.reshape(num_rows, -1, size)


def join_groups(groups: Tensor, num_rows: int, num_cols: int) -> Tensor:
    """[R, G, g] -> [O, I]; undoes `split_groups`."""
    return groups.reshape(num_rows, -1)[:, :num_cols].contiguous()


def spread(values: Tensor, num_rows: int, num_cols: int, scheme: Scheme) -> Tensor:
    """[R, G] -> [O, I]: the value of each weight's group."""
    if scheme.granularity == "group":
        values = torch.repeat_interleave(values, min(scheme.group_size, num_cols), dim=1)[:, :num_cols]
    return values.expand(num_rows, num_cols)
