"""LLaVA-OneVision (AnyRes): the detail view is shrunk to a number of tiles, and only single images are cut."""

import math
from typing import Any

import torch
import torch.nn.functional as F

from tokenreduce.errors import PlaceholderError
from tokenreduce.families.anyres import AnyResFamily, Layout

# The model leaves a detail view as it is up to this ratio of its side to the side it should have.
_TOLERANCE = 1.1


class LlavaOnevisionFamily(AnyResFamily):
    """`LlavaOnevisionForConditionalGeneration`; videos go to the model unreduced.

    The model's bilinear shrinking ("anyres_max_9") comes after the reduction, by the same rule on the reduced
    grid, so that a grid left alone is shrunk as ever and a pooled one seldom. Limits of tokens count a view before it.
    """

    model_class = "LlavaOnevisionForConditionalGeneration"
    image_inputs = ("pixel_values", "image_sizes", "batch_num_images")
    video_inputs = ("pixel_values_videos", "vision_feature_layer", "vision_feature_select_strategy")

    def layouts(self, model: Any, arguments: dict[str, Any]) -> list[Layout]:
        """See `AnyResFamily.layouts`."""
        layouts = super().layouts(model, arguments)
        counts = arguments.get("batch_num_images")
        if counts is None:
            return layouts
        single = [int(count) == 1 for count in counts for _ in range(int(count))]
        if len(single) != len(layouts):
            raise PlaceholderError(
                f"batch_num_images: expected {len(layouts)} images as in image_sizes, got {len(single)}"
            )
        return [layout if alone else None for layout, alone in zip(layouts, single, strict=True)]

    def fitted_shape(self, model: Any, arguments: dict[str, Any], height: int, width: int) -> tuple[int, int]:
        """See `AnyResFamily.fitted_shape`."""
        ratio_name = arguments.get("vision_aspect_ratio") or model.config.vision_aspect_ratio
        max_tiles = int(ratio_name.removeprefix("anyres_max_"))
        side = model.config.vision_config.image_size // model.config.vision_config.patch_size
        ratio = math.sqrt(height * width / (max_tiles * side**2))
        return (height, width) if ratio <= _TOLERANCE else (int(height // ratio), int(width // ratio))

    def fit(self, tokens_hwd: torch.Tensor, height: int, width: int) -> torch.Tensor:
        """See `AnyResFamily.fit`."""
        if tokens_hwd.shape[:2] == (height, width):
            return tokens_hwd
        small = F.interpolate(tokens_hwd.permute(2, 0, 1)[None], [height, width], mode="bilinear")
        return small[0].permute(1, 2, 0)
