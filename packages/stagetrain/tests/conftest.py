import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from transformers import (
    CLIPImageProcessorPil,
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedTokenizerFast,
)

from vlmpress.data import Record, Turn

torch.set_num_threads(1)

COLOURS = {"red": (255, 0, 0), "green": (0, 255, 0), "blue": (0, 0, 255), "yellow": (255, 255, 0)}
SPECIAL = ["<pad>", "<eos>", "<unk>", "<image>"]
WORDS = [*SPECIAL, "USER", "ASSISTANT", ":", "what", "colour", "is", "this", "it", "not", "or", "yes", "no", *COLOURS]
TEMPLATE = (
    "{% for m in messages %}{% if m.role == 'user' %}USER : {% else %}ASSISTANT : {% endif %}"
    "{% for c in m.content %}{% if c.type == 'image' %}<image> {% else %}{{ c.text }} {% endif %}{% endfor %}"
    "{% if m.role == 'assistant' %}<eos> {% endif %}{% endfor %}"
    "{% if add_generation_prompt %}ASSISTANT : {% endif %}"
)


def make_processor(image_size: int = 64, patch_size: int = 8, template: str = TEMPLATE) -> LlavaProcessor:
    inner = Tokenizer(WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="<unk>"))
    inner.pre_tokenizer = WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=inner, pad_token="<pad>", eos_token="<eos>", unk_token="<unk>", padding_side="left"
    )
    tokenizer.add_special_tokens({"additional_special_tokens": ["<image>"]})
    images = CLIPImageProcessorPil(
        size={"shortest_edge": image_size},
        crop_size={"height": image_size, "width": image_size},
        image_mean=[0.5] * 3,
        image_std=[0.5] * 3,
    )
    return LlavaProcessor(
        image_processor=images,
        tokenizer=tokenizer,
        patch_size=patch_size,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=template,
        image_token="<image>",
    )


def make_model(
    num_layers: int = 2, image_size: int = 16, dropout: float = 0.0, seed: int = 0
) -> LlavaForConditionalGeneration:
    torch.manual_seed(seed)
    vision = CLIPVisionConfig(
        hidden_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=128,
        patch_size=8,
        image_size=image_size,
    )
    text = LlamaConfig(
        vocab_size=len(WORDS),
        hidden_size=64,
        num_hidden_layers=num_layers,
        num_attention_heads=4,
        num_key_value_heads=4,
        intermediate_size=160,
        tie_word_embeddings=True,
        initializer_range=0.125,
        attention_dropout=dropout,
        pad_token_id=0,
        eos_token_id=1,
        bos_token_id=None,
    )
    config = LlavaConfig(
        vision_config=vision,
        text_config=text,
        image_token_index=WORDS.index("<image>"),
        vision_feature_select_strategy="default",
        vision_feature_layer=-1,
        tie_word_embeddings=True,
    )
    return LlavaForConditionalGeneration(config).eval()


def make_records(folder: Path, num_images: int, size: int = 16) -> list[Record]:
    """Plain coloured images with one question for the colour, two answered yes and three answered no."""
    records = []
    for index, colour in zip(range(num_images), itertools.cycle(COLOURS), strict=False):
        path = folder / f"{index}.png"
        Image.new("RGB", (size, size), COLOURS[colour]).save(path)
        others = [other for other in COLOURS if other != colour]
        turns = [("what colour is this", colour), (f"is this {colour}", "yes"), (f"is it {colour}", "yes")]
        turns += [(f"is this {other}", "no") for other in others]
        records += [Record(f"{index}.{i}", (path,), (Turn(*turn),)) for i, turn in enumerate(turns)]
    return records


@pytest.fixture(scope="session", name="make_model")
def make_model_fixture() -> Callable[..., Any]:
    return make_model


@pytest.fixture(scope="session", name="make_processor")
def make_processor_fixture() -> Callable[..., Any]:
    return make_processor


@pytest.fixture(scope="session")
def processor() -> LlavaProcessor:
    return make_processor(16)


@pytest.fixture(scope="session")
def records(tmp_path_factory: pytest.TempPathFactory) -> list[Record]:
    return make_records(tmp_path_factory.mktemp("images"), 8)
