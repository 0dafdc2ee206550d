"""LLaVA: one view an image, pooled between the vision tower and the projector."""

from collections.abc import Sequence
from typing import Any

import torch

from tokenreduce.errors import GridError, PlaceholderError, UnsupportedModelError
from tokenreduce.families.family import Encoded, Family
from tokenreduce.families.tower import blank_image, full_sides, split_tiles, tower_tiles
from tokenreduce.reducing import ReducedGrid, VisualGrid


class LlavaFamily(Family):
    """`LlavaForConditionalGeneration` with images of one size; `image_sizes` (Pixtral's towers) are refused."""

    model_class = "LlavaForConditionalGeneration"
    image_inputs = ("pixel_values", "image_sizes")
    gives_attention = True
    shrinks_pixels = True

    def check(self, model: Any) -> None:
        """See `Family.check`."""
        if model.config.vision_config.model_type == "pixtral":
            raise UnsupportedModelError("vision_config: expected a tower for images of one size, got 'pixtral'")
        with torch.no_grad():
            tower_tiles(model, blank_image(model), {})

    def encode(
        self, model: Any, arguments: dict[str, Any], *, needs_attention: bool = False, pixel_factor: int = 1
    ) -> Encoded:
        """See `Family.encode`."""
        if arguments.get("image_sizes") is not None:
            raise PlaceholderError("image_sizes: expected none (images of one size), got some")
        pixel_values = image_batch(arguments["pixel_values"])
        height, width = full_sides(model, pixel_values)
        tiles = tower_tiles(model, pixel_values, arguments, needs_attention=needs_attention, pixel_factor=pixel_factor)
        num_images = len(pixel_values)
        return Encoded(
            grids=[VisualGrid(features=features, attention=seen) for features, seen in split_tiles(tiles)],
            images=range(num_images),
            num_placeholders=[height * width] * num_images,
            num_fixed_tokens=[0] * num_images,
        )

    def embed(self, model: Any, encoded: Encoded, reduced: Sequence[ReducedGrid]) -> list[torch.Tensor]:
        """See `Family.embed`."""
        return project(model, reduced)


def image_batch(pixel_values: Any) -> torch.Tensor:
    """The images, checked to be one tensor [B, C, height, width].

    Raises:
        GridError: They are not.
    """
    if not isinstance(pixel_values, torch.Tensor) or pixel_values.ndim != 4:
        got = list(pixel_values.shape) if isinstance(pixel_values, torch.Tensor) else type(pixel_values).__name__
        raise GridError(f"pixel_values: expected images [B, C, height, width] of one size, got {got}")
    return pixel_values


def project(model: Any, reduced: Sequence[ReducedGrid]) -> list[torch.Tensor]:
    """The tokens of every view after the model's projector, which sees all of them at once."""
    tokens = model.model.multi_modal_projector(torch.cat([grid.tokens for grid in reduced]))
    return list(tokens.split([len(grid.tokens) for grid in reduced]))
