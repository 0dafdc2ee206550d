"""Tiny models of the families that packs are for, all of random weights."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    CLIPVisionConfig,
    InternVLConfig,
    InternVLForConditionalGeneration,
    InternVLVisionConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaOnevisionConfig,
    LlavaOnevisionForConditionalGeneration,
    PreTrainedModel,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2Config,
    Qwen2VLConfig,
    Qwen2VLForConditionalGeneration,
    Siglip2Config,
    Siglip2Model,
    SiglipVisionConfig,
)

from quantpack import Scheme, dequantize, pack, quantize_tensor
from quantpack.selection import is_linear_weight

Batch = dict[str, torch.Tensor]
IMAGE, START, END, PAD = 3, 4, 5, 6
VOCABULARY = 60
TEXT = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 48,
    "vocab_size": VOCABULARY,
    "initializer_range": 0.2,
    "max_position_embeddings": 128,
    "pad_token_id": PAD,
    "bos_token_id": 1,
    "eos_token_id": None,
}
TOWER = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 48}


@dataclass(frozen=True, kw_only=True)
class Family:
    """A model type: how to build one, a batch it takes, and whether it generates."""

    name: str
    build: Callable[[], PreTrainedModel]
    batch: Callable[[], Batch]
    generates: bool = True


def words(count: int) -> torch.Tensor:
    return torch.randint(10, VOCABULARY, (2, count), generator=torch.Generator().manual_seed(0))


def noise(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1))


def prompt(num_image_tokens: int) -> torch.Tensor:
    image = torch.full((2, num_image_tokens), IMAGE)
    return torch.cat([torch.full((2, 1), START), image, torch.full((2, 1), END), words(5)], dim=1)


def llava() -> PreTrainedModel:
    tower = CLIPVisionConfig(**TOWER, patch_size=8, image_size=32, projection_dim=32, initializer_range=0.2)
    config = LlavaConfig(
        vision_config=tower,
        text_config=Qwen2Config(**TEXT, tie_word_embeddings=True),
        image_token_id=IMAGE,
        vision_feature_layer=-1,
        tie_word_embeddings=True,
    )
    return LlavaForConditionalGeneration(config)


def llava_batch() -> Batch:
    return {"input_ids": prompt(16), "pixel_values": noise(2, 3, 32, 32)}


def llava_onevision() -> PreTrainedModel:
    config = LlavaOnevisionConfig(
        vision_config=SiglipVisionConfig(**TOWER, patch_size=8, image_size=16, vision_use_head=False),
        text_config=Qwen2Config(**TEXT, tie_word_embeddings=False),
        image_token_index=IMAGE,
        video_token_index=7,
        image_grid_pinpoints=[[16, 16], [16, 32]],
        vision_feature_layer=-1,
        tie_word_embeddings=False,
    )
    return LlavaOnevisionForConditionalGeneration(config)


def llava_onevision_batch() -> Batch:
    # One tile and the whole image: 4 + 4 patches and 2 line ends.
    return {
        "input_ids": prompt(10),
        "pixel_values": noise(2, 2, 3, 16, 16),
        "image_sizes": torch.tensor([[16, 16], [16, 16]]),
    }


def qwen_vision(**others: Any) -> dict[str, Any]:
    return {"depth": 2, "num_heads": 2, "patch_size": 4, "spatial_merge_size": 2, "temporal_patch_size": 2, **others}


def qwen_config(kind: type, vision: dict[str, Any], tied: bool) -> Any:
    text = {**TEXT, "rope_parameters": {"rope_type": "default", "mrope_section": [1, 1, 2], "rope_theta": 1e4}}
    return kind(
        vision_config=vision,
        text_config={**text, "tie_word_embeddings": tied},
        image_token_id=IMAGE,
        video_token_id=7,
        vision_start_token_id=START,
        vision_end_token_id=END,
        tie_word_embeddings=tied,
    )


def qwen2_vl() -> PreTrainedModel:
    vision = qwen_vision(embed_dim=32, hidden_size=32, mlp_ratio=2)
    return Qwen2VLForConditionalGeneration(qwen_config(Qwen2VLConfig, vision, tied=True))


def qwen2_5_vl() -> PreTrainedModel:
    vision = qwen_vision(hidden_size=32, intermediate_size=48, out_hidden_size=32, fullatt_block_indexes=[1])
    vision["window_size"] = 16
    return Qwen2_5_VLForConditionalGeneration(qwen_config(Qwen2_5_VLConfig, vision, tied=False))


def qwen_batch() -> Batch:
    ids = prompt(4)
    return {
        "input_ids": ids,
        "pixel_values": noise(2 * 16, 3 * 2 * 4 * 4),
        "image_grid_thw": torch.tensor([[1, 4, 4], [1, 4, 4]]),
        "mm_token_type_ids": (ids == IMAGE).int(),
    }


def internvl() -> PreTrainedModel:
    config = InternVLConfig(
        vision_config=InternVLVisionConfig(**TOWER, patch_size=[8, 8], image_size=[32, 32]),
        text_config=Qwen2Config(**TEXT, tie_word_embeddings=True),
        image_token_id=IMAGE,
        image_seq_length=4,
        downsample_ratio=0.5,
        tie_word_embeddings=True,
    )
    return InternVLForConditionalGeneration(config)


def internvl_batch() -> Batch:
    return {"input_ids": prompt(4), "pixel_values": noise(2, 3, 32, 32)}


def siglip2() -> PreTrainedModel:
    text = {**TOWER, "vocab_size": VOCABULARY, "max_position_embeddings": 16, "projection_size": 32}
    text |= {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": PAD}
    return Siglip2Model(Siglip2Config(text_config=text, vision_config={**TOWER, "patch_size": 4, "num_patches": 16}))


def siglip2_batch() -> Batch:
    return {
        "input_ids": words(8),
        "pixel_values": noise(2, 16, 48),
        "pixel_attention_mask": torch.ones(2, 16, dtype=torch.int32),
        "spatial_shapes": torch.tensor([[4, 4], [2, 8]]),
    }


FAMILIES = (
    Family(name="llava", build=llava, batch=llava_batch),
    Family(name="llava_onevision", build=llava_onevision, batch=llava_onevision_batch),
    Family(name="qwen2_vl", build=qwen2_vl, batch=qwen_batch),
    Family(name="qwen2_5_vl", build=qwen2_5_vl, batch=qwen_batch),
    Family(name="internvl", build=internvl, batch=internvl_batch),
    Family(name="siglip2", build=siglip2, batch=siglip2_batch, generates=False),
)


@pytest.fixture(params=FAMILIES, ids=lambda family: family.name)
def family(request: pytest.FixtureRequest) -> Family:
    return request.param


@pytest.fixture(scope="session")
def llava_family() -> Family:
    return FAMILIES[0]


@pytest.fixture(scope="session")
def siglip2_family() -> Family:
    return FAMILIES[-1]


@pytest.fixture(scope="session")
def build() -> Callable[..., PreTrainedModel]:
    """The same model every time, its norms and biases no longer all ones and zeros."""

    def make(family: Family, dtype: torch.dtype = torch.float32) -> PreTrainedModel:
        torch.manual_seed(0)
        model = family.build().eval()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(torch.randn_like(parameter), alpha=0.05)
        return cast_parameters(model, dtype)

    return make


def cast_parameters(model: PreTrainedModel, dtype: torch.dtype) -> PreTrainedModel:
    # Not model.to(): what is computed from the config stays in float32.
    for parameter in model.parameters():
        parameter.data = parameter.data.to(dtype)
    model.config.dtype = dtype
    return model


@pytest.fixture(scope="session")
def reference(build: Callable[..., PreTrainedModel]) -> Callable[..., PreTrainedModel]:
    """What a pack of `build(family, source)` must load as in `dtype`: quantized in place, layer by layer."""

    def make(family: Family, scheme: Scheme, source: torch.dtype, dtype: torch.dtype) -> PreTrainedModel:
        model = cast_parameters(build(family, source), dtype)
        original = build(family, source)
        for name, layer in model.named_modules():
            weight = f"{name}.weight"
            if isinstance(layer, torch.nn.Linear) and is_linear_weight(weight, (1, 1)):
                quantized = quantize_tensor(original.get_parameter(weight), scheme)
                layer.weight.data = dequantize(quantized, dtype)
        return model

    return make


@pytest.fixture
def packed_dir(build: Callable[..., PreTrainedModel], tmp_path: Path) -> Callable[..., Path]:
    """A pack of `build(family, dtype)`."""

    def make(family: Family, scheme: Scheme, dtype: torch.dtype = torch.float32, **options: Any) -> Path:
        build(family, dtype).save_pretrained(tmp_path / "model", **options)
        pack(tmp_path / "model", tmp_path / "pack", scheme)
        return tmp_path / "pack"

    return make


@pytest.fixture(scope="session")
def logits() -> Callable[[PreTrainedModel, Family], torch.Tensor]:
    def compute(model: PreTrainedModel, family: Family) -> torch.Tensor:
        batch = {
            name: tensor.to(model.dtype) if tensor.is_floating_point() else tensor
            for name, tensor in family.batch().items()
        }
        with torch.no_grad():
            outputs = model(**batch)
        return outputs.logits if family.generates else outputs.logits_per_image

    return compute
