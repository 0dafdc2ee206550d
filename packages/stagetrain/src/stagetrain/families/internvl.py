"""InternVL: tiles of images and frames of videos are all images to the model, each a grid of its own."""

from typing import Any

from stagetrain.families.family import Call, Family, equal_views, features_of, tower_sides
from stagetrain.families.views import View


class InternVLFamily(Family):
    """`InternVLForConditionalGeneration`."""

    model_class = "InternVLForConditionalGeneration"

    def views(self, model: Any, call: Call) -> dict[int, list[View]]:
        """See `Family.views`."""
        pixels = call.get("pixel_values")
        rows, columns = _sides(model)
        tiles = equal_views(
            View(rows=rows, columns=columns), None if pixels is None else len(pixels), features_of(call, "image")
        )
        return {model.config.image_token_id: tiles}

    def most_tokens(self, model: Any) -> int | None:
        """See `Family.most_tokens`."""
        rows, columns = _sides(model)
        return rows * columns


def _sides(model: Any) -> tuple[int, int]:
    rows, columns = tower_sides(model)
    ratio = model.config.downsample_ratio
    return int(rows * ratio), int(columns * ratio)
