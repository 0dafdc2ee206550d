"""LLaVA-OneVision: an image is a base view and, if cut into tiles, a detail view whose rows end in newline tokens.

Source: AnyRes as transformers implements it.
"""

import math
from collections.abc import Sequence
from itertools import chain
from typing import Any

import torch
from transformers.image_processing_utils import select_best_resolution

from stagetrain.errors import PoolingUnsupportedError
from stagetrain.families.family import Call, Family, features_of, tower_sides
from stagetrain.families.views import View

# The model leaves a detail view as it is up to this ratio of its side to the side it should have.
_TOLERANCE = 1.1


class LlavaOnevisionFamily(Family):
    """`LlavaOnevisionForConditionalGeneration`; frames of a video are pooled by the model to half their sides."""

    model_class = "LlavaOnevisionForConditionalGeneration"

    def views(self, model: Any, call: Call) -> dict[int, list[View]]:
        """See `Family.views`."""
        config = model.config
        return {config.image_token_id: _images(model, call), config.video_token_id: _videos(model, call)}

    def most_tokens(self, model: Any) -> int | None:
        """See `Family.most_tokens`."""
        rows, columns = tower_sides(model)
        return math.floor(_max_tiles(model) * rows * columns * _TOLERANCE**2)


def _images(model: Any, call: Call) -> list[View]:
    if call.get("pixel_values") is None:
        # Whoever encoded the images, the newlines among their features tell where rows end.
        features = features_of(call, "image")
        return list(chain.from_iterable(_views_of_features(model, each) for each in features or ()))
    sizes = call.get("image_sizes")
    if sizes is None:
        raise PoolingUnsupportedError("pooling: image_sizes: expected height and width of each image, got none")
    sizes = sizes.tolist() if isinstance(sizes, torch.Tensor) else list(sizes)
    counts = call.get("batch_num_images")
    counts = [1] * len(sizes) if counts is None else [int(count) for count in counts]
    is_cut = [count == 1 for count in counts for _ in range(count)]
    if len(is_cut) != len(sizes):
        raise PoolingUnsupportedError(
            f"pooling: batch_num_images: expected {len(sizes)} images as in image_sizes, got {len(is_cut)}"
        )
    views = (_views_of_size(model, size, cut) for size, cut in zip(sizes, is_cut, strict=True))
    return list(chain.from_iterable(views))


def _views_of_size(model: Any, size: Sequence[int], is_cut: bool) -> list[View]:
    """Views of an image that was `size` pixels high and wide before the processor cut it."""
    rows, columns = tower_sides(model)
    tile = model.config.vision_config.image_size
    height, width = select_best_resolution(tuple(size), model.config.image_grid_pinpoints) if is_cut else (0, 0)
    if not is_cut:
        return [View(rows=rows, columns=columns, num_end=1)]
    shape = _unpadded(height // tile * rows, width // tile * columns, size)
    ratio = math.sqrt(shape[0] * shape[1] / (_max_tiles(model) * rows**2))
    if ratio > _TOLERANCE:
        shape = int(shape[0] // ratio), int(shape[1] // ratio)
    return [View(rows=rows, columns=columns), View(rows=shape[0], columns=shape[1], num_row_end=1)]


def _unpadded(rows: int, columns: int, size: Sequence[int]) -> tuple[int, int]:
    """Sides of what is left of a grid without the margins of an image that did not fill it."""
    height, width = size
    if width / height > columns / rows:
        margin = (rows - int(round(height * (columns / width), 7))) // 2
        return rows - 2 * margin, columns
    margin = (columns - int(round(width * (rows / height), 7))) // 2
    return rows, columns - 2 * margin


def _views_of_features(model: Any, features: torch.Tensor) -> list[View]:
    """Views of an image from its features [L, D]."""
    rows, columns = tower_sides(model)
    base = rows * columns
    newline = model.model.image_newline.to(features)
    ends = (features[base:] == newline).all(-1).nonzero()[:, 0].tolist()
    if len(features) - base == len(ends) <= 1:
        return [View(rows=rows, columns=columns, num_end=len(ends))]
    width = ends[0] + 1 if ends else 0
    if (
        not ends
        or len(features) != base + width * len(ends)
        or ends != list(range(width - 1, width * len(ends), width))
    ):
        raise PoolingUnsupportedError(
            f"pooling: expected an image of {base} features and rows that end in newlines, got {len(features)} features"
        )
    return [View(rows=rows, columns=columns), View(rows=len(ends), columns=width - 1, num_row_end=1)]


def _videos(model: Any, call: Call) -> list[View]:
    """Frames; the last of a video is followed by a newline."""
    rows, columns = (math.ceil(side / 2) for side in tower_sides(model))
    pixels, features = call.get("pixel_values_videos"), features_of(call, "video")
    if pixels is not None:
        num_videos, num_frames = pixels.shape[:2]
    elif features is not None:
        num_videos, num_frames = len(features), (features.shape[1] - 1) // (rows * columns)
    else:
        return []
    frames = [View(rows=rows, columns=columns)] * (num_frames - 1) + [View(rows=rows, columns=columns, num_end=1)]
    return frames * num_videos


def _max_tiles(model: Any) -> int:
    return int(model.config.vision_aspect_ratio.removeprefix("anyres_max_"))
