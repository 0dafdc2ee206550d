"""Positions of a conversation's tokens, with images as the Qwen2-VL family counts them (M-RoPE).

Shape legend: A axes (1, or 3: time, height, width), T tokens.
"""

from collections.abc import Sequence

import torch


def plain_positions(length: int) -> torch.Tensor:
    """Every token one further, [1, T] int64."""
    return torch.arange(length)[None]


def rotary_3d_positions(
    length: int, starts: Sequence[int], grids: Sequence[torch.Tensor], merge_size: int
) -> torch.Tensor:
    """Positions by time, height and width, [3, T] int64.

    Text goes on by one in all three. An image's tokens have their place in its grid, counted from the text before
    it; the text behind goes on behind the grid's longer side.

    Args:
        length: Tokens in all.
        starts: First token of each image.
        grids: Patches of each image by time, height and width, [3].
        merge_size: Patches on a side of what becomes one token.
    """
    parts: list[torch.Tensor] = []
    done = position = 0
    for start, grid in zip(starts, grids, strict=True):
        parts.append(_text(start - done, position))
        position += start - done
        time, height, width = grid[0].item(), grid[1].item() // merge_size, grid[2].item() // merge_size
        axes = (torch.arange(int(side)) + position for side in (time, height, width))
        parts.append(torch.stack(torch.meshgrid(*axes, indexing="ij")).flatten(1))
        position += int(max(height, width))
        done = start + parts[-1].shape[1]
    return torch.cat([*parts, _text(length - done, position)], 1)


def _text(length: int, position: int) -> torch.Tensor:
    return (torch.arange(length) + position).expand(3, -1)
