"""Tiny Llava models, and batches whose answer can only be read off the image."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from PIL import Image
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from torch import Tensor
from transformers import (
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedTokenizerFast,
)
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from verbdistill import ResponseStates, Verbalizers

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


@pytest.fixture
def speak() -> Callable[[Verbalizers, list[Tensor]], list[Tensor]]:
    """Logits [N, V] of every target from states [N, h] of its layer."""

    def logits(verbalizers: Verbalizers, states: list[Tensor]) -> list[Tensor]:
        positions = torch.ones(1, len(states[0]), dtype=torch.bool)
        given = ResponseStates(layers=tuple(states), last=states[0], labels=positions[0].long(), positions=positions)
        return [verbalizers.head.logits(features) for features in verbalizers.features(given)]

    return logits


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


WORDS = ["<pad>", "<s>", "</s>", "<image>", "where", "?", "nw", "ne", "sw", "se", "done", "<unk>"]
TEMPLATE = (
    "{% for message in messages %}{% for part in message.content %}"
    "{% if part.type == 'image' %}<image>{% else %} {{ part.text }}{% endif %}"
    "{% endfor %}{{ ' ?' if message.role == 'user' else ' </s>' }}{% endfor %}"
)


def make_processor(words: list[str] = WORDS) -> LlavaProcessor:
    core = Tokenizer(WordLevel({word: number for number, word in enumerate(words)}, unk_token="<unk>"))
    core.pre_tokenizer = WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core, pad_token="<pad>", unk_token="<unk>", additional_special_tokens=["<image>", "</s>"]
    )
    images = CLIPImageProcessorPil(
        size={"height": 16, "width": 16},
        crop_size={"height": 16, "width": 16},
        image_mean=[0.5] * 3,
        image_std=[0.5] * 3,
    )
    return LlavaProcessor(
        images,
        tokenizer,
        patch_size=8,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=TEMPLATE,
    )


@pytest.fixture
def processor() -> Callable[..., LlavaProcessor]:
    return make_processor


@pytest.fixture
def run_folder(tmp_path: Path) -> Path:
    """Teacher, student, data and run.yaml of a run of six steps."""
    make_llava(3, seed=1).save_pretrained(tmp_path / "teacher")
    make_llava(2, seed=2).save_pretrained(tmp_path / "student")
    for name in ("teacher", "student"):
        make_processor().save_pretrained(tmp_path / name)
    lines = []
    for number, (word, corner) in enumerate({"nw": (0, 0), "ne": (8, 0), "sw": (0, 8), "se": (8, 8)}.items()):
        image = Image.new("RGB", (16, 16))
        image.paste((255, 255, 255), (*corner, corner[0] + 8, corner[1] + 8))
        image.save(tmp_path / f"{number}.png")
        lines.append(json.dumps({"image": f"{number}.png", "question": "where", "answer": word}))
    (tmp_path / "data.jsonl").write_text("\n".join(lines))
    (tmp_path / "run.yaml").write_text(
        """
teacher: teacher
student: student
data: data.jsonl
out: out
verbalizers_out: verbalizers
checkpoint_dir: checkpoints
batch_size: 4
distill:
  num_verbalization_steps: 2
  num_interaction_steps: 2
  num_sft_steps: 2
  lora_rank: null
  betas: [0.9, 0.98]
"""
    )
    return tmp_path
