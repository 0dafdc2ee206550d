"""Qwen2-VL and Qwen2.5-VL: grids of any size, frames one after the other, three coordinates for a position (M-RoPE)."""

from typing import Any

import torch

from stagetrain.errors import PoolingUnsupportedError
from stagetrain.families.family import Call, Family, features_of
from stagetrain.families.views import View


class Qwen2VLFamily(Family):
    """`Qwen2VLForConditionalGeneration`; a unit is a frame of an image's or a video's merged grid."""

    model_class = "Qwen2VLForConditionalGeneration"

    def views(self, model: Any, call: Call) -> dict[int, list[View]]:
        """See `Family.views`."""
        config = model.config
        return {
            config.image_token_id: _views(model, call, "image", "pixel_values", config.image_token_id),
            config.video_token_id: _views(model, call, "video", "pixel_values_videos", config.video_token_id),
        }

    def most_tokens(self, model: Any) -> int | None:
        """See `Family.most_tokens`."""
        return None


class Qwen25VLFamily(Qwen2VLFamily):
    """`Qwen2_5_VLForConditionalGeneration`."""

    model_class = "Qwen2_5_VLForConditionalGeneration"


def _views(model: Any, call: Call, modality: str, pixels: str, token: int) -> list[View]:
    if call.get(pixels) is None and features_of(call, modality) is None:
        return []
    grids = call.get(f"{modality}_grid_thw")
    if grids is not None:
        merge = model.config.vision_config.spatial_merge_size
        shapes = [(frames, height // merge, width // merge) for frames, height, width in grids.tolist()]
    else:
        shapes = _shapes_of_positions(call, modality, token)
    return [View(rows=height, columns=width) for frames, height, width in shapes for _ in range(frames)]


def _shapes_of_positions(call: Call, modality: str, token: int) -> list[tuple[int, int, int]]:
    """Frames, rows and columns of each run of placeholders, from their coordinates.

    `generate` keeps the grids to itself, but hands on the positions that it made of them.
    """
    positions = call.get("position_ids")
    if positions is None or positions.ndim != 3 or len(positions) not in (3, 4):
        raise PoolingUnsupportedError(
            f"pooling: {modality}_grid_thw: expected the grids, or position_ids of three coordinates, got neither"
        )
    is_visual = (call["input_ids"] == token).cpu()
    places = positions[-2:].expand(-1, len(is_visual), -1).cpu()
    return [
        _shape_of_run(places[:, row, start:end], modality)
        for row, mask in enumerate(is_visual)
        for start, end in _runs(mask)
    ]


def _runs(mask: torch.Tensor) -> list[tuple[int, int]]:
    edges = torch.nn.functional.pad(mask.int(), (1, 1)).diff()
    return list(zip((edges == 1).nonzero()[:, 0].tolist(), (edges == -1).nonzero()[:, 0].tolist(), strict=True))


def _shape_of_run(places: torch.Tensor, modality: str) -> tuple[int, int, int]:
    """Shape of one image's tokens from their rows and columns, [2, L]."""
    within = places - places.amin(1, keepdim=True)
    height, width = (within.amax(1) + 1).tolist()
    num_frames = within.shape[1] // (height * width)
    frame = torch.cartesian_prod(torch.arange(height), torch.arange(width)).view(-1, 2).T
    if within.shape[1] % (height * width) or not torch.equal(within, frame.repeat(1, num_frames)):
        raise PoolingUnsupportedError(
            f"pooling: position_ids: expected the coordinates of one whole {modality}, got those of {within.shape[1]}"
            f" tokens in {height} rows and {width} columns"
        )
    return num_frames, height, width
