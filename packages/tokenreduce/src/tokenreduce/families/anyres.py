"""What LLaVA-NeXT and LLaVA-OneVision share: a base view and a detail view made of tiles.

Source: LLaVA-NeXT's AnyRes as transformers implements it (spatial_unpad).
"""

from abc import abstractmethod
from collections.abc import Sequence
from itertools import accumulate, pairwise
from typing import Any, ClassVar

import torch
from transformers.image_processing_utils import select_best_resolution

from tokenreduce.errors import PlaceholderError
from tokenreduce.families.family import Encoded, Family
from tokenreduce.families.llava import project
from tokenreduce.families.tower import Tiles, blank_image, tower_tiles
from tokenreduce.reducing import ReducedGrid, VisualGrid

# Tiles down and across; None for an image that is its base view alone.
Layout = tuple[int, int] | None


class AnyResFamily(Family):
    """Views of an image: the base view, then the unpadded detail view, whose rows each end in a newline token.

    An image of one tile is its base view and one newline, a fixed token. Of a detail view from a reducer that keeps
    no grid there are its tokens and one newline.
    """

    image_inputs: ClassVar[tuple[str, ...]] = ("pixel_values", "image_sizes")
    gives_attention = True

    def check(self, model: Any) -> None:
        """See `Family.check`."""
        with torch.no_grad():
            tower_tiles(model, blank_image(model), {})

    @abstractmethod
    def fitted_shape(self, model: Any, arguments: dict[str, Any], height: int, width: int) -> tuple[int, int]:
        """Sides of a detail view of height x width tokens once the model has shrunk it as it does."""

    @abstractmethod
    def fit(self, tokens_hwd: torch.Tensor, height: int, width: int) -> torch.Tensor:
        """Projected tokens [h, w, D] shrunk to [height, width, D]."""

    def layouts(self, model: Any, arguments: dict[str, Any]) -> list[Layout]:
        """How each image was cut into tiles."""
        return [_layout(model, size) for size in image_sizes(arguments)]

    def encode(
        self, model: Any, arguments: dict[str, Any], *, needs_attention: bool = False, pixel_factor: int = 1
    ) -> Encoded:
        """See `Family.encode`."""
        sizes, layouts = image_sizes(arguments), self.layouts(model, arguments)
        num_tiles = [1 if layout is None else 1 + layout[0] * layout[1] for layout in layouts]
        pixel_values = flat_tiles(arguments["pixel_values"], num_tiles)
        tiles = tower_tiles(model, pixel_values, arguments, needs_attention=needs_attention)
        grids: list[VisualGrid] = []
        images: list[int] = []
        num_placeholders, num_newlines = [], []
        for image, (start, end) in enumerate(pairwise([0, *accumulate(num_tiles)])):
            base = _base_view(tiles, start)
            views, newlines, num_others = [base], 1, 1
            layout = layouts[image]
            if layout is not None:
                detail = _detail_view(tiles, slice(start + 1, end), layout, sizes[image])
                height, width = self.fitted_shape(model, arguments, *detail.features.shape[:2])
                num_others = height * (width + 1)
                # Of an image a hundred times as long as wide nothing may be left but newlines.
                views, newlines = ([base, detail], 0) if detail.features.numel() else ([base], height)
            grids += views
            images += [image] * len(views)
            num_newlines.append(newlines)
            num_placeholders.append(base.num_tokens(1) + num_others)
        return Encoded(
            grids=grids,
            images=images,
            num_placeholders=num_placeholders,
            num_fixed_tokens=num_newlines,
            context=arguments,
        )

    def embed(self, model: Any, encoded: Encoded, reduced: Sequence[ReducedGrid]) -> list[torch.Tensor]:
        """See `Family.embed`."""
        parts: list[list[torch.Tensor]] = [[] for _ in encoded.num_placeholders]
        views = zip(encoded.images, encoded.grids, reduced, project(model, reduced), strict=True)
        for image, grid, left, tokens in views:
            newline = model.model.image_newline.to(tokens)
            if grid.num_row_tokens and left.shape is not None:
                height, width = self.fitted_shape(model, encoded.context, *left.shape)
                rows = self.fit(tokens.unflatten(0, left.shape), height, width)
                tokens = torch.cat([rows, newline.expand(height, 1, -1)], dim=1).flatten(0, 1)
            num_newlines = encoded.num_fixed_tokens[image]
            if grid.num_row_tokens and left.shape is None:
                num_newlines = 1
            parts[image] += [tokens, newline.expand(num_newlines, -1)]
        return [torch.cat(part) for part in parts]


def image_sizes(arguments: dict[str, Any]) -> list[list[int]]:
    """Height and width of each image before it was cut.

    Raises:
        PlaceholderError: The call has none.
    """
    sizes = arguments.get("image_sizes")
    if sizes is None:
        raise PlaceholderError("image_sizes: expected height and width of each image, got none")
    return [list(map(int, size)) for size in (sizes.tolist() if isinstance(sizes, torch.Tensor) else sizes)]


def flat_tiles(pixel_values: torch.Tensor, num_tiles: Sequence[int]) -> torch.Tensor:
    """Tiles [sum of num_tiles, C, height, width] of all images, from that or from padded [B, tiles, C, height, width].

    Raises:
        PlaceholderError: There are not as many tiles as the images' sizes ask for.
    """
    if pixel_values.ndim == 5 and len(pixel_values) == len(num_tiles) and pixel_values.shape[1] >= max(num_tiles):
        return torch.cat([tiles[:count] for tiles, count in zip(pixel_values, num_tiles, strict=True)])
    if pixel_values.ndim != 4 or len(pixel_values) != sum(num_tiles):
        raise PlaceholderError(
            f"pixel_values: expected {list(num_tiles)} tiles for the images of image_sizes, "
            f"got shape {list(pixel_values.shape)}"
        )
    return pixel_values


def _layout(model: Any, size: list[int]) -> Layout:
    height, width = select_best_resolution(tuple(size), model.config.image_grid_pinpoints)
    side = model.config.vision_config.image_size
    return height // side, width // side


def _base_view(tiles: Tiles, index: int) -> VisualGrid:
    return VisualGrid(
        features=tiles.features[index], attention=None if tiles.attention is None else tiles.attention[index]
    )


def _detail_view(tiles: Tiles, part: slice, layout: tuple[int, int], size: list[int]) -> VisualGrid:
    attention = None
    if tiles.attention is not None:
        attention = _assemble(tiles.attention[part, ..., None], layout, size)[..., 0]
    return VisualGrid(features=_assemble(tiles.features[part], layout, size), attention=attention, num_row_tokens=1)


def _assemble(tiles: torch.Tensor, layout: tuple[int, int], size: list[int]) -> torch.Tensor:
    """Tiles [n, h, w, D] side by side, without the margins that padding to the tiles' shape has left."""
    whole = tiles.unflatten(0, layout).permute(0, 2, 1, 3, 4).flatten(0, 1).flatten(1, 2)
    height, width = whole.shape[:2]
    if size[1] / size[0] > width / height:
        margin = (height - int(round(size[0] * (width / size[1]), 7))) // 2
        return whole[margin : height - margin]
    margin = (width - int(round(size[1] * (height / size[0]), 7))) // 2
    return whole[:, margin : width - margin]
