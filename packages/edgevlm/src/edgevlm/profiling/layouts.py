"""What an image of some size becomes inside a model, by that model's own resizing and tiling rules.

The rules themselves are transformers' own functions: NaFlex patches, Qwen's smart resize, InternVL's tiles.
"""

from dataclasses import dataclass
from typing import Any

import torch
from transformers.models.got_ocr2.image_processing_pil_got_ocr2 import get_optimal_tiled_canvas
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import smart_resize
from transformers.models.siglip2.image_processing_pil_siglip2 import get_image_size_for_max_num_patches
from transformers.vision_utils import get_vision_window_index

from edgevlm.errors import ModelInputError
from edgevlm.model.configuration import num_patches

QWEN_MIN_PIXELS, QWEN_MAX_PIXELS = 56 * 56, 28 * 28 * 1280
INTERNVL_MAX_TILES = 12


@dataclass(frozen=True, kw_only=True, slots=True)
class ImageSize:
    """Width and height in pixels."""

    width: int
    height: int

    def __post_init__(self) -> None:
        if min(self.width, self.height) < 1:
            raise ModelInputError(f"image: expected at least 1x1 pixels, got {self}")

    def __str__(self) -> str:
        return f"{self.width}x{self.height}"

    @classmethod
    def parse(cls, text: str) -> "ImageSize":
        """From "640x480".

        Raises:
            ModelInputError: It is not a size.
        """
        parts = text.lower().split("x")
        if len(parts) != 2 or not all(part.isascii() and part.isdigit() and len(part) < 7 for part in parts):
            raise ModelInputError(f"image: expected WIDTHxHEIGHT such as 640x480, got {text!r}")
        return cls(width=int(parts[0]), height=int(parts[1]))


@dataclass(frozen=True, kw_only=True, slots=True)
class VisualLayout:
    """One image inside a model.

    Attributes:
        grid: Rows and columns of patches, of one tile where there are tiles.
        num_tiles: Pictures the encoder sees of this image.
        num_patches: Patches the encoder embeds, padding included.
        sequences: Lengths within which the encoder attends, class tokens and padding included.
        windows: The same in layers with local windows; empty where there are none.
        num_projected: Tokens that pass the projector, each maybe of several patches.
        num_seen: Visual tokens the language model sees.
        description: In words.
    """

    grid: tuple[int, int]
    num_tiles: int
    num_patches: int
    sequences: tuple[int, ...]
    windows: tuple[int, ...] = ()
    num_projected: int
    num_seen: int
    description: str

    @property
    def num_encoded(self) -> int:
        """Tokens in the encoder's layers."""
        return sum(self.sequences)


def visual_layout(config: Any, image: ImageSize) -> VisualLayout:
    """The layout of one image.

    Args:
        config: Of an edge model, Llava, Qwen2-VL, Qwen2.5-VL or InternVL.
        image: Size before any resizing.

    Raises:
        ModelInputError: Another kind of model, or an image its rules refuse.
    """
    rules = {"edgevlm": _edge, "llava": _llava, "qwen2_vl": _qwen, "qwen2_5_vl": _qwen, "internvl": _internvl}
    rule = rules.get(config.model_type)
    if rule is None:
        raise ModelInputError(f"model: expected one of {', '.join(rules)}, got {config.model_type!r}")
    return rule(config, image)


def _edge(config: Any, image: ImageSize) -> VisualLayout:
    return _tower(config.vision_config, image, int(config.num_visual_tokens), int(config.num_compressed_tokens))


def _llava(config: Any, image: ImageSize) -> VisualLayout:
    vision = config.vision_config
    num_visual = num_patches(vision)
    if vision.model_type == "clip_vision_model" and config.vision_feature_select_strategy == "full":
        num_visual += 1
    return _tower(vision, image, num_visual, num_visual)


def _tower(vision: Any, image: ImageSize, num_projected: int, num_seen: int) -> VisualLayout:
    count, patch = num_patches(vision), int(vision.patch_size)
    if vision.model_type == "siglip2_vision_model":
        height, width = get_image_size_for_max_num_patches(image.height, image.width, patch, count)
        grid = (height // patch, width // patch)
        description = f"{grid[0]} x {grid[1]} patches, padded to {count}"
    else:
        side = int(vision.image_size) // patch
        grid, description = (side, side), f"{side} x {side} patches"
    return VisualLayout(
        grid=grid, num_tiles=1, num_patches=count, num_projected=num_projected, num_seen=num_seen,
        sequences=(count + (vision.model_type == "clip_vision_model"),), description=description,
    )  # fmt: skip


def _qwen(config: Any, image: ImageSize) -> VisualLayout:
    vision = config.vision_config
    patch, merge = int(vision.patch_size), int(vision.spatial_merge_size)
    try:
        height, width = smart_resize(image.height, image.width, patch * merge, QWEN_MIN_PIXELS, QWEN_MAX_PIXELS)
    except ValueError as error:
        raise ModelInputError(f"image: expected one that {config.model_type} takes, got {image}: {error}") from error
    grid = (height // patch, width // patch)
    count = grid[0] * grid[1]
    windows: tuple[int, ...] = ()
    if config.model_type == "qwen2_5_vl":
        _, borders = get_vision_window_index(torch.tensor([[1, *grid]]), merge, int(vision.window_size), patch)
        windows = tuple(borders.diff().tolist())
    return VisualLayout(
        grid=grid, num_tiles=1, num_patches=count, sequences=(count,), windows=windows,
        num_projected=count // merge**2, num_seen=count // merge**2,
        description=f"{grid[0]} x {grid[1]} patches, merged by {merge} x {merge}",
    )  # fmt: skip


def _internvl(config: Any, image: ImageSize) -> VisualLayout:
    height, width = config.vision_config.image_size
    patch_height, patch_width = config.vision_config.patch_size
    columns, rows = get_optimal_tiled_canvas((image.height, image.width), (height, width), 1, INTERNVL_MAX_TILES)
    # A thumbnail of the whole goes with more than one tile.
    num_tiles = columns * rows + (columns * rows > 1)
    grid = (height // patch_height, width // patch_width)
    count = num_tiles * grid[0] * grid[1]
    num_seen = int(count * config.downsample_ratio**2)
    thumbnail = " and a thumbnail" if num_tiles > 1 else ""
    return VisualLayout(
        grid=grid, num_tiles=num_tiles, num_patches=count, sequences=(grid[0] * grid[1] + 1,) * num_tiles,
        num_projected=num_seen, num_seen=num_seen,
        description=f"{rows} x {columns} tiles of {width}{thumbnail}, {num_seen // num_tiles} tokens each",
    )  # fmt: skip
