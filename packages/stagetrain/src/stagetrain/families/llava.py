"""Llava: every image is one grid of the vision tower's size."""

from typing import Any

from stagetrain.errors import PoolingUnsupportedError
from stagetrain.families.family import Call, Family, equal_views, features_of, tower_sides
from stagetrain.families.views import View

_CLASS_TOKENS = ("class_embedding", "cls_token")


class LlavaFamily(Family):
    """`LlavaForConditionalGeneration` with a tower of one image size."""

    model_class = "LlavaForConditionalGeneration"

    def check(self, model: Any) -> None:
        """See `Family.check`."""
        super().check(model)
        if model.config.vision_config.model_type == "pixtral":
            raise PoolingUnsupportedError("pooling: expected a vision tower of one image size, got pixtral")

    def views(self, model: Any, call: Call) -> dict[int, list[View]]:
        """See `Family.views`."""
        pixels = call.get("pixel_values")
        view = _image_view(model, call.get("vision_feature_select_strategy"))
        images = equal_views(view, None if pixels is None else len(pixels), features_of(call, "image"))
        return {model.config.image_token_id: images}

    def most_tokens(self, model: Any) -> int | None:
        """See `Family.most_tokens`."""
        rows, columns = tower_sides(model)
        return rows * columns


def _image_view(model: Any, strategy: str | None) -> View:
    """A grid, and the class token before it when the strategy keeps it."""
    rows, columns = tower_sides(model)
    keeps_all = (strategy or model.config.vision_feature_select_strategy) == "full"
    has_class = any(name.endswith(_CLASS_TOKENS) for name, _ in model.model.vision_tower.named_parameters())
    return View(rows=rows, columns=columns, num_start=int(keeps_all and has_class))
