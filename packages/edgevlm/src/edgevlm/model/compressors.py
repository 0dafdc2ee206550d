"""Token compressors: an image's visual tokens become a fixed smaller number (Section 3.4).

All have one interface: `forward(tokens_ind, shapes_i2)` gives [I, M, D], and `places(shapes_i2, num_images)`
says which of the N tokens each of the M stands for. `shapes_i2` is rows and columns of each image's grid
(NaFlex); without it every image is the square grid of N. Tokens are in raster order, padding last and zero.

Shapes: I images, N visual tokens, M compressed tokens, D text features.
"""

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.activations import ACT2FN

from edgevlm.model.grids import area_matrices, averaging_matrix, mean_places, most_square


class MlpCompressor(nn.Module):
    """2-layer MLP over the token axis, shared by all features; it knows tokens by their place in the raster.

    The hidden layer has N units, as the paper's costs imply, or 2 M where that is more.
    """

    def __init__(self, num_inputs: int, num_outputs: int, *, hidden_act: str) -> None:
        super().__init__()
        self.linear_1 = nn.Linear(num_inputs, max(num_inputs, 2 * num_outputs))
        self.act = ACT2FN[hidden_act]
        self.linear_2 = nn.Linear(self.linear_1.out_features, num_outputs)

    def forward(self, tokens_ind: Tensor, shapes_i2: Tensor | None = None) -> Tensor:
        """Mixes tokens; padded ones must be zero."""
        mixed: Tensor = self.linear_2(self.act(self.linear_1(tokens_ind.transpose(1, 2))))
        return mixed.transpose(1, 2)

    def places(self, shapes_i2: Tensor | None, num_images: int) -> list[Tensor]:
        """The mean token of each group that a fresh one averages, floored, int64 [M]."""
        return [mean_places(averaging_matrix(self.linear_1.in_features, self.linear_2.out_features))] * num_images

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


class ConvCompressor(nn.Module):
    """Depthwise convolution over the cells of the grid, then a 1x1 convolution over features.

    An image whose grid is not the convolution's (NaFlex, or a side that the cells do not divide) is resampled
    to it by area first, so that a fresh compressor is an exact average over each cell of the image's own grid.
    """

    def __init__(self, num_inputs: int, num_outputs: int, num_features: int) -> None:
        super().__init__()
        self.num_inputs, self.cells, self.square = num_inputs, most_square(num_outputs), most_square(num_inputs)
        rows, columns = (math.ceil(side / num) for side, num in zip(self.square, self.cells, strict=True))
        self.grid = (self.cells[0] * rows, self.cells[1] * columns)
        self.pool = nn.Conv2d(num_features, num_features, (rows, columns), (rows, columns), groups=num_features)
        self.mix = nn.Conv2d(num_features, num_features, 1)

    def forward(self, tokens_ind: Tensor, shapes_i2: Tensor | None = None) -> Tensor:
        """Convolves each image's grid; padded tokens take no part."""
        if shapes_i2 is not None or self.grid != self.square:
            shapes = _shapes(shapes_i2, self.square, tokens_ind)
            tokens_ind = area_matrices(shapes, self.grid, self.num_inputs).to(tokens_ind.dtype) @ tokens_ind
        pooled = self.pool(tokens_ind.transpose(1, 2).unflatten(2, self.grid))
        mixed: Tensor = self.mix(pooled)
        return mixed.flatten(2).transpose(1, 2)

    def places(self, shapes_i2: Tensor | None, num_images: int) -> list[Tensor]:
        """The mean token of each image's cells, floored, int64 [M]."""
        if shapes_i2 is None:
            shapes_i2 = torch.tensor([self.square]).expand(num_images, 2)
        return list(mean_places(area_matrices(shapes_i2, self.cells, self.num_inputs)))


class MaxPoolCompressor(nn.Module):
    """The largest value of each feature in each cell of the image's own grid; no parameters.

    Cells are those of adaptive pooling: where they do not divide the grid, neighbours share a row or column.
    """

    def __init__(self, num_inputs: int, num_outputs: int) -> None:
        super().__init__()
        self.num_inputs, self.cells, self.square = num_inputs, most_square(num_outputs), most_square(num_inputs)

    def forward(self, tokens_ind: Tensor, shapes_i2: Tensor | None = None) -> Tensor:
        """Pools each image's grid; padded tokens take no part."""
        if shapes_i2 is None:
            return self._pooled(tokens_ind, self.square)
        grids = shapes_i2.tolist()
        images = [image[:, : math.prod(grid)] for image, grid in zip(tokens_ind.split(1), grids, strict=True)]
        return torch.cat([self._pooled(image, tuple(grid)) for image, grid in zip(images, grids, strict=True)])

    def _pooled(self, tokens_ind: Tensor, grid: tuple[int, ...]) -> Tensor:
        pooled = F.adaptive_max_pool2d(tokens_ind.transpose(1, 2).unflatten(2, grid), self.cells)
        return pooled.flatten(2).transpose(1, 2)

    def places(self, shapes_i2: Tensor | None, num_images: int) -> list[Tensor]:
        """The mean token of each image's cells, floored, int64 [M]."""
        shapes = [self.square] * num_images if shapes_i2 is None else shapes_i2.tolist()
        return [self._places(rows, columns) for rows, columns in shapes]

    def _places(self, rows: int, columns: int) -> Tensor:
        units = torch.eye(rows * columns).view(-1, 1, rows, columns)
        return mean_places(F.adaptive_avg_pool2d(units, self.cells).flatten(1).T)


def compressor_of(config: Any) -> MlpCompressor | ConvCompressor | MaxPoolCompressor | None:
    """The compressor that an `EdgeVlmConfig` names, without initial weights; None for "none"."""
    numbers = int(config.num_visual_tokens), int(config.num_compressed_tokens)
    match config.compressor:
        case "mlp":
            return MlpCompressor(*numbers, hidden_act=config.compressor_hidden_act)
        case "conv":
            return ConvCompressor(*numbers, int(config.text_config.hidden_size))
        case "maxpool":
            return MaxPoolCompressor(*numbers)
    return None


def _shapes(shapes_i2: Tensor | None, square: tuple[int, int], tokens_ind: Tensor) -> Tensor:
    if shapes_i2 is not None:
        return shapes_i2.to(tokens_ind.device)
    return torch.tensor(square, device=tokens_ind.device).expand(tokens_ind.shape[0], 2)
