"""Models with random weights and batches of noise: for measuring time and memory, which do not depend on either."""

import math
from dataclasses import dataclass

import torch
from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration

from stagetrain.errors import ConfigError

_PATCH_PX, _VOCABULARY, _IMAGE_TOKEN = 8, 1024, 3
_IGNORED = -100


@dataclass(frozen=True, kw_only=True, slots=True)
class SyntheticShape:
    """Sizes of a Llava and its batch.

    Attributes:
        num_layers: Decoder layers.
        num_visual_tokens: Tokens of an image, a square number.
        num_text_tokens: Tokens of a row beside the image's.
        batch: Rows of one image each.
        hidden_size: Width of the decoder, a multiple of `num_heads`.
        num_heads: Attention heads of the decoder.

    Raises:
        ConfigError: A size is not possible.
    """

    num_layers: int = 8
    num_visual_tokens: int = 576
    num_text_tokens: int = 64
    batch: int = 4
    hidden_size: int = 256
    num_heads: int = 8

    def __post_init__(self) -> None:
        sizes = (self.num_layers, self.num_visual_tokens, self.batch, self.num_heads)
        if min(sizes) < 1 or self.num_text_tokens < 2 or self.hidden_size % (2 * self.num_heads):
            raise ConfigError(
                "bench: expected positive sizes, two text tokens and a width of even heads, got"
                f" {sizes}, {self.num_text_tokens} and {self.hidden_size}"
            )
        if math.isqrt(self.num_visual_tokens) ** 2 != self.num_visual_tokens:
            raise ConfigError(f"bench: expected a square number of visual tokens, got {self.num_visual_tokens}")

    @property
    def image_px(self) -> int:
        """Side of an image."""
        return math.isqrt(self.num_visual_tokens) * _PATCH_PX


def synthetic_llava(shape: SyntheticShape, seed: int = 0) -> LlavaForConditionalGeneration:
    """A Llava of this shape around a small frozen CLIP tower."""
    torch.manual_seed(seed)
    vision = CLIPVisionConfig(
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        patch_size=_PATCH_PX,
        image_size=shape.image_px,
    )
    text = LlamaConfig(
        vocab_size=_VOCABULARY,
        hidden_size=shape.hidden_size,
        intermediate_size=11 * shape.hidden_size // 4,
        num_hidden_layers=shape.num_layers,
        num_attention_heads=shape.num_heads,
        num_key_value_heads=shape.num_heads,
        tie_word_embeddings=True,
    )
    config = LlavaConfig(
        vision_config=vision,
        text_config=text,
        image_token_index=_IMAGE_TOKEN,
        image_seq_length=shape.num_visual_tokens,
        vision_feature_select_strategy="default",
        vision_feature_layer=-1,
        tie_word_embeddings=True,
    )
    model = LlavaForConditionalGeneration(config)
    model.model.vision_tower.requires_grad_(False)
    return model


def synthetic_batch(shape: SyntheticShape, seed: int = 0) -> dict[str, torch.Tensor]:
    """Noise images, then noise text, half of which is to be predicted; names as `stagetrain.samples.packing`'s."""
    generator = torch.Generator().manual_seed(seed)
    visual = torch.full((shape.batch, shape.num_visual_tokens), _IMAGE_TOKEN)
    text = torch.randint(_IMAGE_TOKEN + 1, _VOCABULARY, (shape.batch, shape.num_text_tokens), generator=generator)
    ids = torch.cat([visual, text], 1)
    labels = ids.clone()
    labels[:, : -(shape.num_text_tokens // 2)] = _IGNORED
    return {
        "input_ids": ids,
        "attention_mask": torch.ones_like(ids),
        "position_ids": torch.arange(ids.shape[1]).expand(shape.batch, -1),
        "labels": labels,
        "pixel_values": torch.randn(shape.batch, 3, shape.image_px, shape.image_px, generator=generator),
    }
