"""Projector and token compressor (Sections 3.3 and 3.4).

Shapes: I images, N visual tokens, M compressed tokens, E encoder features, D text features.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.activations import ACT2FN


class Projector(nn.Module):
    """2-layer MLP from encoder to text features, [I, N, E] -> [I, N, D]; names and shapes are Llava's."""

    def __init__(self, num_inputs: int, num_outputs: int, *, hidden_act: str, bias: bool) -> None:
        super().__init__()
        self.linear_1 = nn.Linear(num_inputs, num_outputs, bias=bias)
        self.act = ACT2FN[hidden_act]
        self.linear_2 = nn.Linear(num_outputs, num_outputs, bias=bias)

    def forward(self, features_ine: Tensor) -> Tensor:
        """Projects each visual token on its own."""
        projected: Tensor = self.linear_2(self.act(self.linear_1(features_ine)))
        return projected


class TokenCompressor(nn.Module):
    """2-layer MLP over the token axis, shared by all features: [I, N, D] -> [I, M, D].

    The hidden layer has N units, as the paper's costs imply, or 2 M where that is more.
    """

    def __init__(self, num_inputs: int, num_outputs: int, *, hidden_act: str) -> None:
        super().__init__()
        self.linear_1 = nn.Linear(num_inputs, max(num_inputs, 2 * num_outputs))
        self.act = ACT2FN[hidden_act]
        self.linear_2 = nn.Linear(self.linear_1.out_features, num_outputs)

    def forward(self, tokens_ind: Tensor) -> Tensor:
        """Mixes tokens; padded ones must be zero."""
        mixed: Tensor = self.linear_2(self.act(self.linear_1(tokens_ind.transpose(1, 2))))
        return mixed.transpose(1, 2)

    def average_weights(self) -> tuple[Tensor, Tensor]:
        """Weights of both layers that make the MLP an exact group average, biases zero.

        Output m is unit 2m minus unit 2m+1, which see plus and minus the average: for GELU, SiLU
        and ReLU act(x) - act(-x) = x. The other hidden units are random and not yet read, so
        training can put them to use at once.
        """
        num_outputs, num_inputs = self.linear_2.out_features, self.linear_1.in_features
        average_mn = averaging_matrix(num_inputs, num_outputs)
        first = torch.randn(self.linear_1.weight.shape) / math.sqrt(num_inputs)
        first[0 : 2 * num_outputs : 2], first[1 : 2 * num_outputs : 2] = average_mn, -average_mn
        second = torch.zeros(self.linear_2.weight.shape)
        rows = torch.arange(num_outputs)
        second[rows, 2 * rows], second[rows, 2 * rows + 1] = 1.0, -1.0
        return first, second


def averaging_matrix(num_inputs: int, num_outputs: int) -> Tensor:
    """Rows that average neighbouring tokens, [M, N].

    A square number of tokens is taken as a square grid and averaged over the most nearly square
    grid of M cells; any other number is averaged along the raster order.
    """
    side = math.isqrt(num_inputs)
    units = torch.eye(num_inputs)
    if side * side != num_inputs:
        return F.adaptive_avg_pool1d(units, num_outputs).T.contiguous()
    rows = next(rows for rows in range(math.isqrt(num_outputs), 0, -1) if num_outputs % rows == 0)
    cells = F.adaptive_avg_pool2d(units.view(num_inputs, 1, side, side), (rows, num_outputs // rows))
    return cells.flatten(1).T.contiguous()


def group_places(num_inputs: int, num_outputs: int) -> Tensor:
    """The mean input of each row of `averaging_matrix`, floored, int64 [M]."""
    average_mn = averaging_matrix(num_inputs, num_outputs).double()
    return (average_mn @ torch.arange(num_inputs, dtype=torch.float64) + 1e-6).long()
