"""Qwen2-VL and Qwen2.5-VL: grids merged by the vision model already, three coordinates for a position (M-RoPE).

Text keeps its positions. A visual token left takes the coordinates that its place, floored, has on the whole
grid, and decoding goes on from the whole prompt's last position.
"""

from collections.abc import Sequence
from typing import Any

import torch

from tokenreduce.errors import PlaceholderError
from tokenreduce.families.family import Encoded, Family
from tokenreduce.reducing import ReducedGrid, VisualGrid

_ROUNDING = 1e-4


class Qwen2VLFamily(Family):
    """`Qwen2VLForConditionalGeneration`; each frame of an image's grid is a view, videos go unreduced."""

    model_class = "Qwen2VLForConditionalGeneration"
    image_inputs = ("pixel_values", "image_grid_thw")
    video_inputs = ("pixel_values_videos", "video_grid_thw")
    has_coordinates = True

    def check(self, model: Any) -> None:
        """See `Family.check`; the vision model has neither CLS nor a fixed size."""

    def encode(
        self, model: Any, arguments: dict[str, Any], *, needs_attention: bool = False, pixel_factor: int = 1
    ) -> Encoded:
        """See `Family.encode`."""
        sides = merged_sides(model, arguments)
        features = model.model.get_image_features(
            pixel_values=arguments["pixel_values"], image_grid_thw=arguments["image_grid_thw"], return_dict=True
        ).pooler_output
        grids: list[VisualGrid] = []
        images: list[int] = []
        for image, (tokens, shape) in enumerate(zip(features, sides, strict=True)):
            grids += [VisualGrid(features=frame) for frame in tokens.unflatten(0, shape)]
            images += [image] * shape[0]
        return Encoded(
            grids=grids,
            images=images,
            num_placeholders=[frames * height * width for frames, height, width in sides],
            num_fixed_tokens=[0] * len(sides),
        )

    def embed(self, model: Any, encoded: Encoded, reduced: Sequence[ReducedGrid]) -> list[torch.Tensor]:
        """See `Family.embed`."""
        parts: list[list[torch.Tensor]] = [[] for _ in encoded.num_placeholders]
        for image, left in zip(encoded.images, reduced, strict=True):
            parts[image].append(left.tokens)
        return [torch.cat(part) for part in parts]

    def positions(self, model: Any, arguments: dict[str, Any]) -> torch.Tensor | None:
        """See `Family.positions`."""
        past = arguments.get("past_key_values")
        if past is not None and past.get_seq_length() and model.model.rope_deltas is not None:
            # In a later turn these models count on, images or not.
            return None
        mask, types = arguments.get("attention_mask"), arguments.get("mm_token_type_ids")
        if types is None:
            raise PlaceholderError("mm_token_type_ids: expected 1 at image placeholders beside images, got none")
        if mask is not None and mask.ndim != 2:
            raise PlaceholderError("position_ids: expected positions beside a 4-D attention_mask, got none")
        optional = {name: arguments.get(name) for name in ("video_grid_thw", "second_per_grid_ts")}
        positions: torch.Tensor = model.model.get_rope_index(
            arguments["input_ids"],
            mm_token_type_ids=types,
            image_grid_thw=arguments["image_grid_thw"],
            attention_mask=mask,
            **optional,
        )[0]
        return positions

    def places(self, encoded: Encoded, reduced: Sequence[ReducedGrid]) -> torch.Tensor:
        """See `Family.places`."""
        parts, offset, last = [], 0, -1
        for image, grid, left in zip(encoded.images, encoded.grids, reduced, strict=True):
            height, width = grid.features.shape[:2]
            offset = offset if image == last else 0
            # Means of whole numbers may come out a little below them.
            row, column = (left.places + _ROUNDING).long().unbind(dim=1)
            parts.append(offset + row * width + column)
            offset, last = offset + height * width, image
        return torch.cat(parts)

    def remember_positions(self, model: Any, positions_3BT: torch.Tensor, num_left_B: torch.Tensor) -> None:  # noqa: N803
        """See `Family.remember_positions`."""
        model.model.rope_deltas = (positions_3BT.amax(dim=(0, 2)) + 1 - num_left_B)[:, None]


class Qwen25VLFamily(Qwen2VLFamily):
    """`Qwen2_5_VLForConditionalGeneration`."""

    model_class = "Qwen2_5_VLForConditionalGeneration"


def merged_sides(model: Any, arguments: dict[str, Any]) -> list[tuple[int, int, int]]:
    """Frames, rows and columns of each image's merged grid.

    Raises:
        PlaceholderError: The call has no image_grid_thw, or its patches are not as many as pixel_values has.
    """
    shapes, pixel_values = arguments.get("image_grid_thw"), arguments["pixel_values"]
    if shapes is None:
        raise PlaceholderError("image_grid_thw: expected frames, rows and columns of each image, got none")
    if int(shapes.prod(dim=1).sum()) != len(pixel_values):
        raise PlaceholderError(
            f"pixel_values: expected {int(shapes.prod(dim=1).sum())} patches as in image_grid_thw, "
            f"got {len(pixel_values)}"
        )
    merge = model.config.vision_config.spatial_merge_size
    return [(frames, height // merge, width // merge) for frames, height, width in shapes.tolist()]
