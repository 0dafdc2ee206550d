"""Feature grids of different sizes: taken out of padding, and put together where they are equally large.

Shape suffixes: B images, H and W sides of the padded grid, h and w sides of an image's own, N positions, D channels.
"""

from collections.abc import Sequence

import torch

from tokenreduce.errors import FeatureError, GridError


def unpad(features: torch.Tensor, grid_sizes: torch.Tensor | Sequence[Sequence[int]]) -> list[torch.Tensor]:
    """Each image's own grid at the top left of [B, H, W, D], as a view [h, w, D]; sizes are rows and columns [B, 2].

    Raises:
        FeatureError: The features are not [B, H, W, D].
        GridError: The sizes are not one (rows, columns) an image, from 1 to H and from 1 to W.
    """
    if features.ndim != 4:
        raise FeatureError(f"features: expected [B, H, W, D], got shape {list(features.shape)}")
    sizes = _sizes(grid_sizes, len(features), "grid_sizes")
    _, height, width, _ = features.shape
    for image, (h, w) in enumerate(sizes):
        if not (1 <= h <= height and 1 <= w <= width):
            raise GridError(f"grid_sizes: expected 1 x 1 to {height} x {width}, got {h} x {w} of image {image}")
    return [image[:h, :w] for image, (h, w) in zip(features, sizes, strict=True)]


def unpack_naflex(features: torch.Tensor, spatial_shapes: torch.Tensor | Sequence[Sequence[int]]) -> list[torch.Tensor]:
    """Each image's grid [h, w, D] from NaFlex's layout: [B, N, D], h * w positions row-major, then padding.

    Raises:
        FeatureError: The features are not [B, N, D].
        GridError: The shapes are not one (h, w) an image, of 1 to N positions.
    """
    if features.ndim != 3:
        raise FeatureError(f"features: expected [B, N, D], got shape {list(features.shape)}")
    sizes = _sizes(spatial_shapes, len(features), "spatial_shapes")
    for image, (h, w) in enumerate(sizes):
        if not (h >= 1 and w >= 1 and h * w <= features.shape[1]):
            raise GridError(
                f"spatial_shapes: expected 1 to {features.shape[1]} positions, got {h} x {w} of image {image}"
            )
    return [image[: h * w].unflatten(0, (h, w)) for image, (h, w) in zip(features, sizes, strict=True)]


def group_grids(grids: Sequence[torch.Tensor]) -> list[tuple[list[int], torch.Tensor]]:
    """Grids [H, W, D] of one size and type together: their indices, and the batch [G, H, W, D] of each group.

    A group of several is a copy; gradients flow.

    Raises:
        FeatureError: A grid is not a floating [H, W, D] without an empty side.
    """
    groups: dict[tuple[torch.Size, torch.dtype, torch.device], list[int]] = {}
    for index, grid in enumerate(grids):
        shape = list(grid.shape)
        if grid.ndim != 3 or 0 in shape:
            raise FeatureError(f"grid {index}: expected a non-empty [H, W, D], got shape {shape}")
        if not grid.is_floating_point():
            raise FeatureError(f"grid {index}: expected a floating type, got {grid.dtype}")
        groups.setdefault((grid.shape, grid.dtype, grid.device), []).append(index)
    return [
        (rows, grids[rows[0]][None] if len(rows) == 1 else torch.stack([grids[row] for row in rows]))
        for rows in groups.values()
    ]


def _sizes(sizes: torch.Tensor | Sequence[Sequence[int]], num_images: int, name: str) -> list[tuple[int, int]]:
    try:
        tensor = torch.as_tensor(sizes)
    except (TypeError, ValueError, RuntimeError) as error:
        raise GridError(f"{name}: expected integers {[num_images, 2]}, got {error}") from error
    if list(tensor.shape) != [num_images, 2]:
        raise GridError(f"{name}: expected shape {[num_images, 2]}, got {list(tensor.shape)}")
    if tensor.is_floating_point() or tensor.is_complex() or tensor.dtype == torch.bool:
        raise GridError(f"{name}: expected integers, got {tensor.dtype}")
    return [(height, width) for height, width in tensor.tolist()]
