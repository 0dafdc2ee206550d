"""The visual features of a model on their grids: what a reducer sees."""

from collections.abc import Sequence
from typing import Any

import torch

from tokenreduce.errors import PlaceholderError, UnsupportedModelError
from tokenreduce.families import family_of
from tokenreduce.families.llava import LlavaFamily
from tokenreduce.families.tower import tower_tiles
from tokenreduce.reducing import VisualGrid


def views_of(model: Any, **inputs: Any) -> list[VisualGrid]:
    """The views of all images in a call's inputs, as `attach` would give them to a reducer; gradients flow.

    Args:
        model: Any model that `attach` takes, attached or not.
        **inputs: The call's arguments that describe images (pixel_values and, depending on the model, image_sizes,
            batch_num_images or image_grid_thw); what a processor makes may be passed whole.

    Raises:
        UnsupportedModelError: `attach` does not take this model.
        GridError: The encoder's tokens do not fill their grid, for example because CLS is still there.
        PlaceholderError: An argument is missing or does not fit the others.
    """
    family = family_of(model)
    if inputs.get(family.image_inputs[0]) is None:
        raise PlaceholderError(f"{family.image_inputs[0]}: expected images, got none")
    return list(family.encode(model, inputs).grids)


def features_of(
    model: Any,
    pixel_values: torch.Tensor,
    *,
    vision_feature_layer: int | Sequence[int] | None = None,
    vision_feature_select_strategy: str | None = None,
) -> torch.Tensor:
    """Features between tower and projector of a Llava model; [B, C, height, width] -> [B, H, W, D], row-major grid.

    Several feature layers are concatenated along D, as Llava does. The two options default to the model's
    configuration. Gradients flow into the tower.

    Raises:
        UnsupportedModelError: The model is not a Llava model; `views_of` takes others.
        GridError: The tower's tokens do not fill the H x W patch grid, for example because CLS is still there.
    """
    if not isinstance(family_of(model), LlavaFamily):
        raise UnsupportedModelError(f"model: expected a LlavaForConditionalGeneration, got {type(model).__name__}")
    options = {
        "vision_feature_layer": vision_feature_layer,
        "vision_feature_select_strategy": vision_feature_select_strategy,
    }
    return tower_tiles(model, pixel_values, options).features
