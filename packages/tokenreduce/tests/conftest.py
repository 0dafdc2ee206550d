"""Tiny random Llava models and batches for them."""

import pytest
import torch
from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration, Qwen2Config

from tokenreduce import ReductionPolicy, features_of, sigma_per_factor

IMAGE, PAD, NUM_FULL = 3, 0, 64


@pytest.fixture(autouse=True)
def _one_thread():
    torch.set_num_threads(1)
    torch.manual_seed(0)


def build(text="llama", **options):
    torch.manual_seed(7)
    vision = CLIPVisionConfig(
        hidden_size=64, num_hidden_layers=2, num_attention_heads=4, intermediate_size=96, patch_size=8, image_size=64
    )
    sizes = {
        "vocab_size": 40,
        "hidden_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 4,
        "intermediate_size": 96,
        "tie_word_embeddings": True,
        "pad_token_id": PAD,
        "bos_token_id": 1,
        "eos_token_id": 2,
    }
    language = LlamaConfig(**sizes) if text == "llama" else Qwen2Config(**sizes)
    settings = {"vision_feature_layer": -1, "vision_feature_select_strategy": "default"} | options
    config = LlavaConfig(
        vision_config=vision, text_config=language, image_token_id=IMAGE, tie_word_embeddings=True, **settings
    )
    return enlarge(LlavaForConditionalGeneration(config).eval())


def enlarge(model):
    with torch.no_grad():
        # The stock initialisation is so small that every token looks alike; some of it is zero.
        for parameter in model.parameters():
            if parameter.ndim >= 2:
                parameter.mul_(6) if parameter.any() else parameter.normal_(std=0.2)
    model.generation_config.pad_token_id = PAD
    # Random models would stop at random.
    model.generation_config.eos_token_id = None
    return model


@pytest.fixture(params=["llama", "qwen2"])
def model(request):
    return build(request.param)


@pytest.fixture
def llama():
    return build()


@pytest.fixture
def pixels():
    """Five images from flat to noisy, [5, 3, 64, 64]."""
    generator = torch.Generator().manual_seed(3)
    noise = torch.randn(5, 3, 64, 64, generator=generator)
    flat = torch.randn(5, 3, 1, 1, generator=generator)
    share = torch.tensor([0.0, 0.05, 0.2, 0.6, 1.0])[:, None, None, None]
    return flat * (1 - share) + noise * share


@pytest.fixture
def make_policy(pixels):
    """A policy under which the five images get more than one factor."""

    def make(model, mode="residual", factors=(1, 2, 3)):
        with torch.no_grad():
            sigmas = sigma_per_factor(features_of(model, pixels), factors, mode)
        values = sigmas[:, 1:].flatten().sort().values.double()
        tau = float((values[len(values) // 2 - 1] + values[len(values) // 2]) / 2)
        return ReductionPolicy(tau=tau, mode=mode, factors=factors)

    return make


@pytest.fixture
def build_llava():
    """Builds a Llava model; options go into its configuration."""
    return build


@pytest.fixture
def prompt():
    """Start, `num_images` full images, `count` words: one row of token ids, from a seed."""

    def make(count, seed=0, num_images=1):
        words = torch.randint(4, 40, (count,), generator=torch.Generator().manual_seed(seed))
        return torch.tensor([1] + [IMAGE] * (NUM_FULL * num_images) + words.tolist())

    return make


@pytest.fixture
def enlarge_weights():
    """Makes a fresh model's weights large enough to tell its tokens apart."""
    return enlarge
