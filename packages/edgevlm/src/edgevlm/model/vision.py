"""Runs one of three vision encoders and gives patch features with their validity.

Shapes: I images, N visual tokens of an image, E features of the encoder.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from edgevlm.errors import ModelInputError
from edgevlm.model.configuration import EdgeVlmConfig


def patch_features(
    tower: Any,
    config: EdgeVlmConfig,
    pixel_values: Tensor,
    pixel_attention_mask: Tensor | None = None,
    spatial_shapes: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Features [I, N, E] of the configured layer and their validity, bool [I, N]; CLIP's class token is dropped.

    Args:
        tower: Vision model of `config.vision_config`.
        config: Says which layer, and N.
        pixel_values: [I, 3, H, W]; NaFlex: patches [I, n <= N, 3 * patch * patch].
        pixel_attention_mask: NaFlex only, [I, n], 1 for a patch and 0 for padding.
        spatial_shapes: NaFlex only, [I, 2], rows and columns of patches.

    Raises:
        ModelInputError: NaFlex inputs are missing or contradict each other, or another number of patches comes out.
    """
    layer = config.vision_feature_layer
    options: dict[str, Any] = {} if layer is None else {"output_hidden_states": True}
    if config.vision_encoder == "siglip2":
        if pixel_attention_mask is None or spatial_shapes is None:
            raise ModelInputError("pixel_attention_mask, spatial_shapes: expected both for siglip2, got none")
        _check_grids(pixel_values, pixel_attention_mask, spatial_shapes)
        options |= {"pixel_attention_mask": pixel_attention_mask, "spatial_shapes": spatial_shapes}
    output = tower(pixel_values, **options)
    features = output.last_hidden_state if layer is None else output.hidden_states[layer]
    if config.vision_encoder == "clip":
        features = features[:, 1:]
    if pixel_attention_mask is None:
        valid = torch.ones(features.shape[:2], dtype=torch.bool, device=features.device)
    else:
        valid = pixel_attention_mask.bool()
    return _padded(features, valid, int(config.num_visual_tokens or 0), exact=config.vision_encoder != "siglip2")


def _check_grids(pixel_values: Tensor, mask: Tensor, shapes: Tensor) -> None:
    """A mask has as many patches as the grid, the grid's first: compressors of grids rely on it."""
    num_patches = shapes.prod(1)
    place = torch.arange(mask.shape[-1], device=mask.device)
    if mask.shape != pixel_values.shape[:2] or not torch.equal(mask.bool(), place < num_patches[:, None]):
        raise ModelInputError(
            f"spatial_shapes: expected the grids of {mask.sum(-1).tolist()} leading patches, as pixel_attention_mask "
            f"says, got {shapes.tolist()}"
        )


def _padded(features: Tensor, valid: Tensor, num_tokens: int, *, exact: bool) -> tuple[Tensor, Tensor]:
    missing = num_tokens - features.shape[1]
    if missing < 0 or (exact and missing):
        raise ModelInputError(f"pixel_values: expected {num_tokens} patches an image, got {features.shape[1]}")
    if missing:
        features, valid = F.pad(features, (0, 0, 0, missing)), F.pad(valid, (0, missing))
    return features, valid
