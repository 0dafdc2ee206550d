"""Tiny models of six families, random weights, and calibration samples that their forward takes."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
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
    Siglip2Config,
    Siglip2Model,
    SiglipVisionConfig,
)

Sample = dict[str, Any]
IMAGE = 3
VOCABULARY = 60

_TEXT = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "vocab_size": VOCABULARY,
    "initializer_range": 0.2,
    "max_position_embeddings": 256,
}
_VISION = {"hidden_size": 16, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 24}
_MROPE = {"rope_type": "default", "mrope_section": [1, 1, 2]}


def _llava() -> nn.Module:
    vision = CLIPVisionConfig(**_VISION, image_size=16, patch_size=4, projection_dim=16, initializer_range=0.2)
    text = LlamaConfig(**_TEXT, num_key_value_heads=4, tie_word_embeddings=True)
    return LlavaForConditionalGeneration(
        LlavaConfig(vision_config=vision, text_config=text, image_token_id=IMAGE, tie_word_embeddings=True)
    )


def _llava_onevision() -> nn.Module:
    vision = SiglipVisionConfig(**_VISION, image_size=16, patch_size=4, vision_use_head=False)
    text = Qwen2Config(**_TEXT, num_key_value_heads=2)
    return LlavaOnevisionForConditionalGeneration(
        LlavaOnevisionConfig(
            vision_config=vision,
            text_config=text,
            image_token_id=IMAGE,
            video_token_id=4,
            image_grid_pinpoints=[[16, 16]],
        )
    )


def _qwen2_vl() -> nn.Module:
    vision = {"depth": 3, "embed_dim": 16, "hidden_size": 32, "num_heads": 2, "mlp_ratio": 2, "patch_size": 4}
    text = {**_TEXT, "num_key_value_heads": 2, "rope_parameters": {**_MROPE, "rope_theta": 1e4}}
    return Qwen2VLForConditionalGeneration(
        Qwen2VLConfig(vision_config=vision, text_config=text, image_token_id=IMAGE, video_token_id=4)
    )


def _qwen2_5_vl() -> nn.Module:
    vision = {
        "depth": 3,
        "hidden_size": 16,
        "out_hidden_size": 32,
        "num_heads": 2,
        "intermediate_size": 24,
        "patch_size": 4,
        "window_size": 16,
        "fullatt_block_indexes": [1],
    }
    text = {**_TEXT, "num_key_value_heads": 2, "rope_parameters": {**_MROPE, "rope_theta": 1e4}}
    return Qwen2_5_VLForConditionalGeneration(
        Qwen2_5_VLConfig(vision_config=vision, text_config=text, image_token_id=IMAGE, video_token_id=4)
    )


def _internvl() -> nn.Module:
    vision = InternVLVisionConfig(**_VISION, image_size=16, patch_size=4, use_qk_norm=True, norm_type="rms_norm")
    text = Qwen2Config(**_TEXT, num_key_value_heads=2)
    return InternVLForConditionalGeneration(
        InternVLConfig(vision_config=vision, text_config=text, image_token_id=IMAGE, image_seq_length=4)
    )


def _siglip2() -> nn.Module:
    text = {**_TEXT, "projection_size": 32, "max_position_embeddings": 16}
    vision = {**_VISION, "hidden_size": 32, "patch_size": 4, "num_patches": 16}
    return Siglip2Model(Siglip2Config(text_config=text, vision_config=vision))


BUILDERS: dict[str, Callable[[], nn.Module]] = {
    "llava": _llava,
    "llava_onevision": _llava_onevision,
    "qwen2_vl": _qwen2_vl,
    "qwen2_5_vl": _qwen2_5_vl,
    "internvl": _internvl,
    "siglip2": _siglip2,
}
FAMILIES = list(BUILDERS)
_IMAGE_TOKENS = {"llava": 16, "llava_onevision": 36, "qwen2_vl": 4, "qwen2_5_vl": 4, "internvl": 4}


def build(family: str, dtype: torch.dtype = torch.float32) -> nn.Module:
    """The family's tiny model; norms and biases are random too, or folding into them would show nothing."""
    torch.manual_seed(0)
    model = BUILDERS[family]()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, param in model.named_parameters():
            if param.dim() == 1:
                param.copy_(torch.rand(param.shape, generator=generator) + (0.5 if name.endswith("weight") else -0.5))
    return model.to(dtype).eval()


def prompt(family: str, num_text: int, generator: torch.Generator, *, images: int = 1) -> Tensor:
    """[1, T] ids: images first, then text."""
    text = torch.randint(5, VOCABULARY, (1, num_text), generator=generator)
    return torch.cat((torch.full((1, images * _IMAGE_TOKENS[family]), IMAGE), text), dim=1)


def sample(family: str, *, num_text: int = 6, seed: int = 0, dtype: torch.dtype = torch.float32) -> Sample:
    """One image and a few words."""
    generator = torch.Generator().manual_seed(seed)
    if family == "siglip2":
        mask = torch.ones(2, 16, dtype=torch.int64)
        mask[1, 12:] = 0
        return {
            "input_ids": torch.randint(5, VOCABULARY, (2, num_text), generator=generator),
            "pixel_values": torch.randn(2, 16, 48, generator=generator, dtype=torch.float64).to(dtype),
            "pixel_attention_mask": mask,
            "spatial_shapes": torch.tensor([[4, 4], [3, 4]]),
        }
    ids = prompt(family, num_text, generator)
    given: Sample = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    if family in ("qwen2_vl", "qwen2_5_vl"):
        pixels = torch.randn(16, 3 * 2 * 4 * 4, generator=generator, dtype=torch.float64)
        grid = torch.tensor([[1, 4, 4]])
        return {
            **given,
            "pixel_values": pixels.to(dtype),
            "image_grid_thw": grid,
            "mm_token_type_ids": (ids == IMAGE).int(),
        }
    pixels = torch.randn(1, 3, 16, 16, generator=generator, dtype=torch.float64).to(dtype)
    if family == "llava_onevision":
        # The whole image and its one crop.
        return {**given, "pixel_values": pixels[:, None].repeat(1, 2, 1, 1, 1), "image_sizes": torch.tensor([[16, 16]])}
    return {**given, "pixel_values": pixels}


def text_only(*, num_text: int = 6, seed: int = 0) -> Sample:
    ids = torch.randint(5, VOCABULARY, (1, num_text), generator=torch.Generator().manual_seed(seed))
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


class Tiny:
    """What test files share."""

    IMAGE = IMAGE
    build = staticmethod(build)
    prompt = staticmethod(prompt)
    sample = staticmethod(sample)
    text_only = staticmethod(text_only)


@pytest.fixture(scope="session")
def tiny() -> type[Tiny]:
    return Tiny


@pytest.fixture(params=FAMILIES)
def family(request: pytest.FixtureRequest) -> str:
    return request.param
