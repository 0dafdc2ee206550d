"""Tiny random models of every family, batches for them, and slow reducers."""

from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import (
    CLIPVisionConfig,
    InternVLConfig,
    InternVLForConditionalGeneration,
    InternVLVisionConfig,
    LlamaConfig,
    LlavaNextConfig,
    LlavaNextForConditionalGeneration,
    LlavaOnevisionConfig,
    LlavaOnevisionForConditionalGeneration,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2Config,
    Qwen2VLConfig,
    Qwen2VLForConditionalGeneration,
    SiglipVisionConfig,
)

from tokenreduce.reducing import ReducedGrid

IMAGE, PAD, VIDEO = 3, 0, 4


class FixedFactor:
    """Pools every view by one factor, or by the one the caller wants."""

    needs_attention = False
    pixel_factor = 1

    def __init__(self, factor=1):
        self.factor = factor
        self.limits = []

    def reduce(self, grids, *, rows, max_tokens=None):
        assert len(rows) == len(grids)
        self.limits.append(max_tokens)
        return [pooled(grid.features, grid.factor or self.factor) for grid in grids]


class EveryThird:
    """Keeps every third token of a view, no grid."""

    needs_attention = False
    pixel_factor = 1

    def reduce(self, grids, *, rows, max_tokens=None):
        return [selected(grid.features, slice(None, None, 3)) for grid in grids]


class MostAttended:
    """Keeps the five tokens that receive most attention."""

    needs_attention = True
    pixel_factor = 1

    def reduce(self, grids, *, rows, max_tokens=None):
        self.seen = [grid.attention for grid in grids]
        return [selected(g.features, g.attention.flatten().topk(5).indices.sort().values) for g in grids]


class SmallerImages(FixedFactor):
    """Leaves views of smaller images as they are."""

    pixel_factor = 2


def coordinates(height, width):
    return torch.cartesian_prod(torch.arange(height), torch.arange(width)).float()


def selected(features, index):
    return ReducedGrid(tokens=features.flatten(0, 1)[index], places=coordinates(*features.shape[:2])[index])


def pooled(features, factor):
    """Slow and obvious: every window by itself."""
    height, width, _ = features.shape
    starts = [(r, c) for r in range(0, height, factor) for c in range(0, width, factor)]
    places = coordinates(height, width).unflatten(0, (height, width))
    windows = [(slice(r, r + factor), slice(c, c + factor)) for r, c in starts]
    return ReducedGrid(
        tokens=torch.stack([features[window].mean(dim=(0, 1)) for window in windows]),
        places=torch.stack([places[window].mean(dim=(0, 1)) for window in windows]),
        shape=(-(-height // factor), -(-width // factor)),
        factor=factor,
    )


TEXT = {
    "vocab_size": 40,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 48,
    "tie_word_embeddings": True,
    "pad_token_id": PAD,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
TOWER = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48}
IDS = {"image_token_id": IMAGE, "tie_word_embeddings": True}
PINPOINTS = [[32, 64], [64, 32], [64, 64], [32, 96]]
M_ROPE = {"rope_parameters": {"rope_type": "default", "mrope_section": [2, 1, 1], "rope_theta": 10000.0}}
MERGED = {"patch_size": 4, "spatial_merge_size": 2, "temporal_patch_size": 2, "in_channels": 3, "num_heads": 2}
SPECIAL = IDS | {"video_token_id": VIDEO, "vision_start_token_id": 5, "vision_end_token_id": 6}


def llava_next():
    vision = CLIPVisionConfig(patch_size=8, image_size=32, **TOWER)
    return LlavaNextForConditionalGeneration(
        LlavaNextConfig(vision_config=vision, text_config=LlamaConfig(**TEXT), image_grid_pinpoints=PINPOINTS, **IDS)
    )


def llava_onevision():
    vision = SiglipVisionConfig(patch_size=8, image_size=32, vision_use_head=False, **TOWER)
    return LlavaOnevisionForConditionalGeneration(
        LlavaOnevisionConfig(
            vision_config=vision,
            text_config=Qwen2Config(**TEXT),
            image_grid_pinpoints=PINPOINTS,
            vision_aspect_ratio="anyres_max_2",
            video_token_id=VIDEO,
            **IDS,
        )
    )


def internvl():
    vision = InternVLVisionConfig(patch_size=4, image_size=32, layer_scale_init_value=1.0, **TOWER)
    return InternVLForConditionalGeneration(
        InternVLConfig(vision_config=vision, text_config=Qwen2Config(**TEXT), **IDS)
    )


def qwen2_vl():
    vision = MERGED | {"depth": 2, "embed_dim": 32, "hidden_size": 32, "mlp_ratio": 2}
    return Qwen2VLForConditionalGeneration(Qwen2VLConfig(text_config=TEXT | M_ROPE, vision_config=vision, **SPECIAL))


def qwen2_5_vl():
    vision = {"depth": 2, "hidden_size": 32, "out_hidden_size": 32, "intermediate_size": 48, "tokens_per_second": 2}
    windows = {"window_size": 16, "fullatt_block_indexes": [1]}
    return Qwen2_5_VLForConditionalGeneration(
        Qwen2_5_VLConfig(text_config=TEXT | M_ROPE, vision_config=MERGED | vision | windows, **SPECIAL)
    )


def fixed_images(side):
    """Three images of one size."""

    def make(count=3):
        return [{"pixel_values": torch.randn(1, 3, side, side)} for _ in range(count)]

    return make


def anyres_images():
    """A wide image of two tiles, a tall one that has to be unpadded, a large one of four tiles; height, width."""
    images = []
    for size, tiles in (((20, 64), 3), ((50, 18), 3), ((64, 60), 5)):
        images.append({"pixel_values": torch.randn(tiles, 3, 32, 32), "image_sizes": torch.tensor([size])})
    return images


def merged_images():
    """Images of 4 x 6, 2 x 2 and 6 x 4 merged tokens, the last one of two frames."""
    images = []
    for shape in ((1, 8, 12), (1, 4, 4), (2, 12, 8)):
        grid = torch.tensor([shape])
        images.append({"pixel_values": torch.randn(int(grid.prod()), 3 * 2 * 4 * 4), "image_grid_thw": grid})
    return images


@dataclass
class FamilyCase:
    """A tiny model, three images and how many placeholders each of them has."""

    name: str
    model: Any
    images: list
    num_full: list
    wrapped: bool = False

    def row(self, images, num_words, seed=0):
        """Start, images, words."""
        words = torch.randint(7, 40, (num_words,), generator=torch.Generator().manual_seed(seed)).tolist()
        ids = [1]
        for image in images:
            placeholders = [IMAGE] * self.num_full[image]
            ids += [5, *placeholders, 6] if self.wrapped else placeholders
        return ids + words

    def batch(self, rows, left=False):
        """Inputs of rows, each given as images and a number of words."""
        ids = [self.row(images, num_words, seed) for seed, (images, num_words) in enumerate(rows)]
        longest = max(map(len, ids))
        filled = [[PAD] * (longest - len(row)) * left + row + [PAD] * (longest - len(row)) * (not left) for row in ids]
        used = [self.images[image] for images, _ in rows for image in images]
        inputs = {"input_ids": torch.tensor(filled)}
        inputs["attention_mask"] = (inputs["input_ids"] != PAD).long()
        for name in used[0] if used else ():
            inputs[name] = torch.cat([image[name] for image in used])
        if self.wrapped:
            inputs["mm_token_type_ids"] = (inputs["input_ids"] == IMAGE).int()
        return inputs


FAMILY_CASES = {
    "llava": (None, fixed_images(64), [64] * 3),
    "llava_next": (llava_next, anyres_images, [16 + 2 * 9, 16 + 8 * 3, 16 + 8 * 9]),
    "llava_onevision": (llava_onevision, anyres_images, [16 + 2 * 9, 16 + 8 * 3, 16 + 5 * 6]),
    "internvl": (internvl, fixed_images(32), [16] * 3),
    "qwen2_vl": (qwen2_vl, merged_images, [24, 4, 48]),
    "qwen2_5_vl": (qwen2_5_vl, merged_images, [24, 4, 48]),
}


@pytest.fixture
def reducers():
    """Slow and obvious reducers, by name."""
    return SimpleNamespace(
        FixedFactor=FixedFactor,
        EveryThird=EveryThird,
        MostAttended=MostAttended,
        SmallerImages=SmallerImages,
        pooled=pooled,
        selected=selected,
    )


@pytest.fixture
def family_case(request, build_llava, enlarge_weights):
    """The case of the family named by the test's (indirect) parameter."""
    name = request.param
    make_model, make_images, num_full = FAMILY_CASES[name]
    torch.manual_seed(7)
    # Llava's is the one that other tests use.
    model = enlarge_weights(make_model().eval()) if make_model else build_llava()
    torch.manual_seed(11)
    return FamilyCase(name, model, make_images(), num_full, wrapped=name.startswith("qwen"))
