"""Tiny Llava models, and batches whose answer can only be read off the image."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration

torch.set_num_threads(1)

VOCAB = 12
IMAGE_TOKEN = 3
NUM_PATCHES = 4
ASK, FIRST_ANSWER = 4, 6


def make_llava(
    num_layers: int, *, seed: int = 0, hidden_size: int = 32, vocab_size: int = VOCAB
) -> LlavaForConditionalGeneration:
    torch.manual_seed(seed)
    vision = CLIPVisionConfig(
        hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2, image_size=16, patch_size=8
    )
    text = LlamaConfig(
        vocab_size=vocab_size,
        hidden_size=hidden_size,
        intermediate_size=2 * hidden_size,
        num_hidden_layers=num_layers,
        num_attention_heads=2,
        num_key_value_heads=2,
        tie_word_embeddings=True,
        initializer_range=0.1,
    )
    config = LlavaConfig(
        vision_config=vision,
        text_config=text,
        image_token_id=IMAGE_TOKEN,
        image_seq_length=NUM_PATCHES,
        vision_feature_layer=-1,
        tie_word_embeddings=True,
    )
    return LlavaForConditionalGeneration(config).eval()


def make_batch(step: int, *, num_images: int = 8, num_colors: int = 4) -> dict[str, Tensor]:
    """[image x 4] ask -> (color, color + 1) a row; the color is which quarter of the image is bright."""
    generator = torch.Generator().manual_seed(1000 + step)
    colors = torch.randint(num_colors, (num_images,), generator=generator)
    bright = torch.nn.functional.one_hot(colors, NUM_PATCHES).float().view(-1, 1, 2, 2) * 2 - 1
    pixels = bright.repeat_interleave(8, dim=2).repeat_interleave(8, dim=3).expand(-1, 3, -1, -1)
    pixels = pixels + 0.05 * torch.randn(pixels.shape, generator=generator)
    answer = FIRST_ANSWER + torch.stack([colors, (colors + 1) % num_colors], dim=1)
    prompt = torch.tensor([IMAGE_TOKEN] * NUM_PATCHES + [ASK]).expand(num_images, -1)
    ids = torch.cat([prompt, answer], dim=1)
    return {
        "input_ids": ids,
        "pixel_values": pixels,
        "position_ids": torch.arange(ids.shape[1]).expand_as(ids),
        "attention_mask": torch.ones_like(ids),
        "labels": torch.cat([torch.full_like(prompt, -100), answer], dim=1),
    }


@pytest.fixture
def llava() -> Callable[..., LlavaForConditionalGeneration]:
    return make_llava


@pytest.fixture
def batches() -> Callable[..., dict[str, Tensor]]:
    return make_batch


@pytest.fixture(scope="session")
def trained_teacher() -> LlavaForConditionalGeneration:
    """Four layers, trained until it reads the color; tests must not change it."""
    teacher = make_llava(4, seed=1)
    optimizer = torch.optim.AdamW(teacher.parameters(), lr=3e-3)
    for step in range(250):
        loss = teacher(**make_batch(step)).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss < 0.3, loss
    return teacher.eval()
