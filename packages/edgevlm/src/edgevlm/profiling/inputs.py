"""Tensors a processor would make of one image and a prompt, made from shapes with random contents.

Shapes: B rows, T tokens, one image a row.
"""

from typing import Any

import torch
from torch import Tensor

from edgevlm.profiling.layouts import ImageSize, VisualLayout, visual_layout
from edgevlm.serving.prefilling import image_token_id

_NUM_BEFORE = 4
"""Text tokens before the image, as a chat template has them."""


def request_inputs(
    config: Any,
    *,
    image: ImageSize,
    num_text_tokens: int,
    batch_size: int = 1,
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
) -> dict[str, Tensor]:
    """Model inputs of equal rows: pixels in the model's own layout, and a prompt with its placeholders.

    Raises:
        ModelInputError: The model or image has no layout.
    """
    layout = visual_layout(config, image)
    generator = torch.Generator().manual_seed(seed)
    before = min(_NUM_BEFORE, num_text_tokens - 1)
    placeholder = image_token_id(config)
    text = _text_ids(config, num_text_tokens, placeholder, generator)
    seen = torch.full((layout.num_seen,), placeholder)
    input_ids = torch.cat((text[:before], seen, text[before:])).expand(batch_size, -1)
    pixels = _pixels(config, layout, generator).to(dtype)
    inputs = {"input_ids": input_ids, "pixel_values": pixels.repeat(batch_size, *[1] * (pixels.ndim - 1))}
    inputs |= {name: value.repeat(batch_size, 1) for name, value in _grids(config, layout).items()}
    if config.model_type.startswith("qwen2"):
        inputs["mm_token_type_ids"] = (input_ids == placeholder).int()
    return {name: value.to(device).contiguous() for name, value in inputs.items()}


def _text_ids(config: Any, num_tokens: int, placeholder: int, generator: torch.Generator) -> Tensor:
    """Ordinary tokens: the first quarter of a vocabulary holds no special ones, but for tiny vocabularies."""
    size = int(config.get_text_config().vocab_size)
    ids = torch.randint(0, max(size // 4, 2), (num_tokens,), generator=generator)
    return torch.where(ids == placeholder, (placeholder + 1) % size, ids)


def _pixels(config: Any, layout: VisualLayout, generator: torch.Generator) -> Tensor:
    vision = config.vision_config
    if config.model_type.startswith("qwen2"):
        features = int(vision.in_channels * vision.temporal_patch_size * vision.patch_size**2)
        return torch.randn(layout.num_patches, features, generator=generator)
    if vision.model_type == "siglip2_vision_model":
        pixels = torch.randn(1, layout.num_patches, vision.num_channels * vision.patch_size**2, generator=generator)
        pixels[:, layout.grid[0] * layout.grid[1] :] = 0.0
        return pixels
    size = vision.image_size
    height, width = size if isinstance(size, list | tuple) else (size, size)
    return torch.randn(layout.num_tiles, vision.num_channels, height, width, generator=generator)


def _grids(config: Any, layout: VisualLayout) -> dict[str, Tensor]:
    if config.model_type.startswith("qwen2"):
        return {"image_grid_thw": torch.tensor([[1, *layout.grid]])}
    if config.vision_config.model_type == "siglip2_vision_model":
        mask = (torch.arange(layout.num_patches) < layout.grid[0] * layout.grid[1]).int()
        return {"spatial_shapes": torch.tensor([layout.grid]), "pixel_attention_mask": mask[None]}
    return {}
