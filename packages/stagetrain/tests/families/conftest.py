"""Tiny models of every family, and batches for them out of rows that are written as text.

In a row `t` is a text token, `p` padding, `i` a small image, `I` a larger one (of a family that knows several
sizes), `v` a video. What a row's tokens, images and videos are follows from the row alone.
"""

import itertools
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from transformers import (
    CLIPVisionConfig,
    InternVLConfig,
    InternVLForConditionalGeneration,
    InternVLVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaOnevisionConfig,
    LlavaOnevisionForConditionalGeneration,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2Config,
    Qwen2VLConfig,
    Qwen2VLForConditionalGeneration,
    SiglipVisionConfig,
)

torch.set_num_threads(1)

PAD, IMAGE, VIDEO, WORDS = 0, 3, 4, 30
PATCH = 8
TEXT = {
    "vocab_size": WORDS,
    "hidden_size": 32,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 48,
    "initializer_range": 0.2,
    "pad_token_id": PAD,
    "bos_token_id": None,
    "eos_token_id": None,
}
TOKENS = {"image_token_id": IMAGE, "tie_word_embeddings": True}
VIDEO_TOKENS = TOKENS | {"video_token_id": VIDEO}
TOWER = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 48}
SIDES = {"i": (2, 3), "I": (4, 2)}
SIZES = {"i": (30, 30), "I": (37, 70)}
FRAMES = 3


@dataclass(frozen=True)
class Visual:
    """Inputs of one image or video: its placeholders' token and number, and tensors by name."""

    token: int
    num_tokens: int
    tensors: dict[str, torch.Tensor]


@dataclass(frozen=True)
class FamilyCase:
    """A family under test.

    Attributes:
        name: Its name.
        rows: A batch with several images, a text-only row and, where the family knows them, videos.
        build: Makes a model of so many layers.
        visual: Makes the inputs of one image or video of a row; whether it is the row's only image matters to some.
        collate: Puts the tensors of all together.
    """

    name: str
    rows: tuple[str, ...]
    build: Callable[[int], Any]
    visual: Callable[[str, bool], Visual]
    collate: Callable[[list[dict[str, torch.Tensor]]], dict[str, torch.Tensor]]

    def model(self, num_layers: int = 3, attention: str = "sdpa") -> Any:
        torch.manual_seed(0)
        model = self.build(num_layers).eval()
        model.set_attn_implementation(attention)
        return model

    def batch(
        self, rows: tuple[str, ...] | None = None, side: str = "left", with_labels: bool = False
    ) -> dict[str, Any]:
        rows = self.rows if rows is None else rows
        ids, visuals = [], []
        for row in rows:
            torch.manual_seed(zlib.crc32(row.encode()))
            one: list[int] = []
            for letter in row:
                if letter in "tp":
                    one.append(int(torch.randint(5, WORDS, ())) if letter == "t" else PAD)
                else:
                    visual = self.visual(letter, sum(map(row.count, "iI")) == 1)
                    one += [visual.token] * visual.num_tokens
                    visuals.append(visual.tensors)
            ids.append(one)
        width = max(map(len, ids))
        order = (lambda one, fill: fill + one) if side == "left" else (lambda one, fill: one + fill)
        tokens = torch.tensor([order(one, [PAD] * (width - len(one))) for one in ids])
        mask = torch.tensor([order([1] * len(one), [0] * (width - len(one))) for one in ids])
        batch = {"input_ids": tokens, "attention_mask": mask, **self.collate(visuals)}
        if "qwen" in self.name:
            batch["mm_token_type_ids"] = (tokens == IMAGE) + 2 * (tokens == VIDEO)
        if self.name == "onevision" and visuals:
            batch["batch_num_images"] = torch.tensor([sum(map(row.count, "iI")) for row in rows])
        if with_labels:
            is_answer = (tokens >= 5) & (mask.flip(1).cumsum(1).flip(1) <= 3)
            batch["labels"] = torch.where(is_answer, tokens, -100)
        return batch


def concatenated(visuals: list[dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    names = dict.fromkeys(itertools.chain.from_iterable(visuals))
    return {name: torch.cat([each[name] for each in visuals if name in each]) for name in names}


def one_size_image(num_tokens: int, side: int) -> Callable[[str, bool], Visual]:
    return lambda letter, alone: Visual(IMAGE, num_tokens, {"pixel_values": torch.randn(1, 3, side, side)})


def build_llava(num_layers: int) -> Any:
    vision = CLIPVisionConfig(image_size=3 * PATCH, patch_size=PATCH, **TOWER)
    text = LlamaConfig(num_hidden_layers=num_layers, **TEXT)
    options = {"vision_feature_select_strategy": "default", "vision_feature_layer": -1}
    return LlavaForConditionalGeneration(LlavaConfig(vision_config=vision, text_config=text, **TOKENS, **options))


def build_internvl(num_layers: int) -> Any:
    sides = {"image_size": [4 * PATCH, 4 * PATCH], "patch_size": [PATCH, PATCH]}
    vision = InternVLVisionConfig(**TOWER, **sides)
    text = Qwen2Config(num_hidden_layers=num_layers, **TEXT)
    config = InternVLConfig(vision_config=vision, text_config=text, downsample_ratio=0.5, **TOKENS)
    return InternVLForConditionalGeneration(config)


def build_onevision(num_layers: int) -> Any:
    side = 4 * PATCH
    vision = SiglipVisionConfig(image_size=side, patch_size=PATCH, vision_use_head=False, **TOWER)
    text = Qwen2Config(num_hidden_layers=num_layers, **TEXT)
    grids = [[rows * side, columns * side] for rows in (1, 2) for columns in (1, 2, 3)]
    config = LlavaOnevisionConfig(
        vision_config=vision,
        text_config=text,
        image_grid_pinpoints=grids,
        vision_feature_layer=-1,
        vision_aspect_ratio="anyres_max_4",
        **VIDEO_TOKENS,
    )
    return LlavaOnevisionForConditionalGeneration(config)


def onevision_visual(letter: str, alone: bool) -> Visual:
    side = 4 * PATCH
    if letter == "v":
        return Visual(VIDEO, FRAMES * 4 + 1, {"pixel_values_videos": torch.randn(1, FRAMES, 3, side, side)})
    # i: one tile of 4 x 4; I: 2 x 3 tiles of 8 x 12, 37 x 70 pixels leave 6 x 12.
    tiles, detail = (1, 4 * 5) if letter == "i" else (6, 6 * 13)
    pixels = torch.randn(1, 7, 3, side, side)
    pixels[:, 1 + tiles :] = 0
    tensors = {"pixel_values": pixels, "image_sizes": torch.tensor([SIZES[letter]])}
    return Visual(IMAGE, 16 + (detail if alone else 1), tensors)


def qwen_text(num_layers: int) -> dict[str, Any]:
    rope = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 1, 1]}
    return TEXT | {"num_hidden_layers": num_layers, "rope_parameters": rope}


def build_qwen2_vl(num_layers: int) -> Any:
    vision = {"depth": 1, "embed_dim": 32, "hidden_size": 32, "num_heads": 2, "mlp_ratio": 2, "patch_size": 4}
    config = Qwen2VLConfig(vision_config=vision, text_config=qwen_text(num_layers), **VIDEO_TOKENS)
    return Qwen2VLForConditionalGeneration(config)


def build_qwen2_5_vl(num_layers: int) -> Any:
    vision = {"depth": 2, "hidden_size": 32, "out_hidden_size": 32, "num_heads": 2, "intermediate_size": 48}
    vision |= {"patch_size": 4, "window_size": 16, "fullatt_block_indexes": [1]}
    config = Qwen2_5_VLConfig(vision_config=vision, text_config=qwen_text(num_layers), **VIDEO_TOKENS)
    return Qwen2_5_VLForConditionalGeneration(config)


def qwen_visual(letter: str, alone: bool) -> Visual:
    height, width = SIDES.get(letter, (2, 2))
    frames, kind, names = 1, IMAGE, ("pixel_values", "image_grid_thw")
    if letter == "v":
        frames, kind, names = FRAMES, VIDEO, ("pixel_values_videos", "video_grid_thw")
    patches = torch.randn(frames * height * width * 4, 3 * 2 * 4 * 4)
    grid = torch.tensor([[frames, 2 * height, 2 * width]])
    return Visual(kind, frames * height * width, dict(zip(names, (patches, grid), strict=True)))


CASES = {
    case.name: case
    for case in (
        FamilyCase("llava", ("titttt", "tiitttt", "tttttttt"), build_llava, one_size_image(9, 3 * PATCH), concatenated),
        FamilyCase(
            "internvl", ("titttt", "tiitittt", "tttttttt"), build_internvl, one_size_image(4, 4 * PATCH), concatenated
        ),
        FamilyCase(
            "onevision", ("tIttt", "tiItttt", "tttttttt", "tvttt"), build_onevision, onevision_visual, concatenated
        ),
        FamilyCase("qwen2_vl", ("tIttt", "titItttt", "tttttttt", "tvttt"), build_qwen2_vl, qwen_visual, concatenated),
        FamilyCase(
            "qwen2_5_vl", ("tIttt", "titItttt", "tttttttt", "tvttt"), build_qwen2_5_vl, qwen_visual, concatenated
        ),
    )
}


@pytest.fixture(params=list(CASES))
def case(request: pytest.FixtureRequest) -> FamilyCase:
    return CASES[request.param]


@pytest.fixture(scope="session")
def cases() -> dict[str, FamilyCase]:
    return CASES
