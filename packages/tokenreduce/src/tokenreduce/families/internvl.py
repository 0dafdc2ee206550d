"""InternVL: every tile is an image with placeholders of its own, pooled between pixel shuffle and projector."""

from collections.abc import Sequence
from typing import Any

import torch
from transformers.modeling_outputs import BaseModelOutputWithPooling

from tokenreduce.families.family import Encoded, Family
from tokenreduce.families.llava import image_batch, project
from tokenreduce.families.tower import Tiles, blank_image, full_sides, split_tiles, tower_tiles
from tokenreduce.reducing import ReducedGrid, VisualGrid


class InternVLFamily(Family):
    """`InternVLForConditionalGeneration`."""

    model_class = "InternVLForConditionalGeneration"
    gives_attention = True
    shrinks_pixels = True

    def check(self, model: Any) -> None:
        """See `Family.check`."""
        with torch.no_grad():
            self._tiles(model, blank_image(model), {})

    def encode(
        self, model: Any, arguments: dict[str, Any], *, needs_attention: bool = False, pixel_factor: int = 1
    ) -> Encoded:
        """See `Family.encode`."""
        pixel_values = image_batch(arguments["pixel_values"]).to(model.dtype)
        tiles = self._tiles(model, pixel_values, arguments, needs_attention=needs_attention, pixel_factor=pixel_factor)
        block = _block(model)
        height, width = (side // block for side in full_sides(model, pixel_values))
        num_tiles = len(pixel_values)
        return Encoded(
            grids=[VisualGrid(features=features, attention=seen) for features, seen in split_tiles(tiles)],
            images=range(num_tiles),
            num_placeholders=[height * width] * num_tiles,
            num_fixed_tokens=[0] * num_tiles,
        )

    def embed(self, model: Any, encoded: Encoded, reduced: Sequence[ReducedGrid]) -> list[torch.Tensor]:
        """See `Family.embed`."""
        return project(model, reduced)

    def hand_over(self, model: Any, call: dict[str, Any], encoded: Encoded, tokens: list[torch.Tensor]) -> None:
        """See `Family.hand_over`; here as one tensor [tokens, 1, D].

        The model wants a tensor, and `generate`, when it copies rows for beams, one length for each entry.
        """
        each: Any = torch.cat(tokens)[:, None]
        call["mm_encoder_outputs"] = {"image": BaseModelOutputWithPooling(pooler_output=each)}

    def _tiles(self, model: Any, pixel_values: torch.Tensor, arguments: dict[str, Any], **options: Any) -> Tiles:
        block = _block(model)
        tiles = tower_tiles(model, pixel_values, arguments, multiple=block, last_state=True, **options)
        features = model.model.pixel_shuffle(tiles.features, scale_factor=model.config.downsample_ratio)
        attention = tiles.attention
        if attention is not None:
            # What a block of patches receives together.
            attention = attention.unflatten(2, (-1, block)).unflatten(1, (-1, block)).sum(dim=(2, 4))
        return Tiles(features=features, attention=attention)


def _block(model: Any) -> int:
    """Patches along a side that pixel shuffle makes one token of."""
    return round(1 / model.config.downsample_ratio)
