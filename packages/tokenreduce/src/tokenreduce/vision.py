"""The vision features of a Llava model, on their grid: what DFMR sees."""

from collections.abc import Sequence
from typing import Any

import torch
from transformers import LlavaForConditionalGeneration

from tokenreduce.errors import GridError


def features_of(
    model: LlavaForConditionalGeneration,
    pixel_values: torch.Tensor,
    *,
    vision_feature_layer: int | Sequence[int] | None = None,
    vision_feature_select_strategy: str | None = None,
) -> torch.Tensor:
    """Features between the vision tower and the projector; [B, C, height, width] -> [B, H, W, D], row-major grid.

    Several feature layers are concatenated along D, as Llava does. The two options default to the model's
    configuration. Gradients flow into the tower.

    Raises:
        GridError: The tower's tokens do not fill the H x W patch grid, for example because CLS is still there.
    """
    config = model.config
    layer = config.vision_feature_layer if vision_feature_layer is None else vision_feature_layer
    strategy = vision_feature_select_strategy or config.vision_feature_select_strategy
    outputs = model.model.vision_tower(pixel_values, output_hidden_states=True, return_dict=True)
    layers = [layer] if isinstance(layer, int) else list(layer)
    states = [outputs.hidden_states[index] for index in layers]
    if strategy == "default":
        states = [state[:, 1:] for state in states]
    tokens = states[0] if len(states) == 1 else torch.cat(states, dim=-1)
    vision: Any = config.vision_config
    height, width = (side // vision.patch_size for side in pixel_values.shape[-2:])
    if tokens.ndim != 3 or tokens.shape[1] != height * width:
        raise GridError(
            f"vision tower with vision_feature_select_strategy={strategy!r}: expected {height * width} tokens of a "
            f"{height} x {width} grid without CLS, got shape {list(tokens.shape)}"
        )
    return tokens.unflatten(1, (height, width))


def check_grid(model: LlavaForConditionalGeneration) -> None:
    """Raises GridError unless one blank image of the configured size fills the patch grid."""
    vision: Any = model.config.vision_config
    side = vision.image_size
    blank = torch.zeros(1, getattr(vision, "num_channels", 3), side, side, dtype=model.dtype, device=model.device)
    with torch.no_grad():
        features_of(model, blank)
