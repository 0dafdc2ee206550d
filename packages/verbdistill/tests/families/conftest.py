"""Tiny processors and models of every family, made here: word-level tokenizers, noise as images."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from transformers import (
    CLIPVisionConfig,
    InternVLConfig,
    InternVLForConditionalGeneration,
    InternVLProcessor,
    InternVLVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaOnevisionConfig,
    LlavaOnevisionForConditionalGeneration,
    LlavaOnevisionProcessor,
    LlavaProcessor,
    PreTrainedTokenizerFast,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2_5_VLProcessor,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen2VLConfig,
    Qwen2VLForConditionalGeneration,
    Qwen2VLProcessor,
    SiglipVisionConfig,
)
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from transformers.models.got_ocr2.image_processing_pil_got_ocr2 import GotOcr2ImageProcessorPil
from transformers.models.llava_onevision.image_processing_pil_llava_onevision import LlavaOnevisionImageProcessorPil
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from vlmpress.data import Record, Turn

PAD, EOS = 0, 1
WORDS = ["USER", "ASSISTANT", ":", "what", "is", "this", "that", "and", "red", "green", "blue", "yes", "no"]
WORDS += ["it", "or", "not"]
PINPOINTS = [[32, 64], [64, 32], [64, 64], [32, 96]]
SIZES = ((40, 30), (96, 20), (18, 50), (64, 60))
VOCABULARY = {"teacher": 40, "student": 34}
"""Both padded, and differently."""

DEPTH = {"teacher": 3, "student": 2}


def chat_template(image: str) -> str:
    return (
        "{% for m in messages %}{% if m.role == 'user' %}USER : {% else %}ASSISTANT : {% endif %}"
        "{% if m.content is string %}{{ m.content }} {% else %}"
        "{% for c in m.content %}{% if c.type == 'image' %}" + image + " {% else %}{{ c.text }} {% endif %}{% endfor %}"
        "{% endif %}{% if m.role == 'assistant' %}<eos> {% endif %}{% endfor %}"
        "{% if add_generation_prompt %}ASSISTANT : {% endif %}"
    )


def make_tokenizer(special: dict[str, str]) -> PreTrainedTokenizerFast:
    words = ["<pad>", "<eos>", "<unk>", *special.values(), *WORDS]
    inner = Tokenizer(WordLevel({word: number for number, word in enumerate(words)}, unk_token="<unk>"))
    inner.pre_tokenizer = WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=inner,
        pad_token="<pad>",
        eos_token="<eos>",
        unk_token="<unk>",
        padding_side="right",
        extra_special_tokens=special,
    )


def without_video(kind: type[Any]) -> type[Any]:
    """The processor class for images alone: its video part needs a library that is not wanted here."""

    def check(self: Any, name: str, part: Any) -> Any:
        return None if name == "video_processor" else kind.check_argument_for_proper_class(self, name, part)

    return type(kind.__name__, (kind,), {"check_argument_for_proper_class": check, "__init__": kind.__init__})


def llava(side: int = 32) -> Any:
    images = CLIPImageProcessorPil(size={"shortest_edge": side}, crop_size={"height": side, "width": side})
    return LlavaProcessor(
        images,
        make_tokenizer({"image_token": "<image>"}),
        patch_size=8,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=chat_template("<image>"),
    )


def llava_onevision() -> Any:
    images = LlavaOnevisionImageProcessorPil(size={"height": 32, "width": 32}, image_grid_pinpoints=PINPOINTS)
    return without_video(LlavaOnevisionProcessor)(
        images,
        make_tokenizer({"image_token": "<image>", "video_token": "<video>"}),
        num_image_tokens=16,
        vision_feature_select_strategy="full",
        vision_aspect_ratio="anyres_max_2",
        chat_template=chat_template("<image>"),
    )


def qwen(kind: type[Any]) -> Any:
    images = Qwen2VLImageProcessorPil(patch_size=4, merge_size=2, size={"shortest_edge": 256, "longest_edge": 2048})
    names = {"image_token": "<|image_pad|>", "video_token": "<|video_pad|>"}
    special = {**names, "vision_start": "<|vision_start|>", "vision_end": "<|vision_end|>"}
    template = chat_template("<|vision_start|><|image_pad|><|vision_end|>")
    return without_video(kind)(images, make_tokenizer(special), chat_template=template)


def internvl() -> Any:
    images = GotOcr2ImageProcessorPil(size={"height": 32, "width": 32}, crop_to_patches=True, max_patches=4)
    special = {
        "start_image_token": "<img>",
        "end_image_token": "</img>",
        "context_image_token": "<IMG_CONTEXT>",
        "video_token": "<video>",
    }
    template = chat_template("<IMG_CONTEXT>")
    return without_video(InternVLProcessor)(
        images, make_tokenizer(special), image_seq_length=16, chat_template=template
    )


def text_only() -> Any:
    tokenizer = make_tokenizer({})
    tokenizer.chat_template = chat_template("")
    return tokenizer


TEXT = {
    "hidden_size": 32,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 48,
    "initializer_range": 0.3,
    "tie_word_embeddings": True,
    "pad_token_id": PAD,
    "eos_token_id": EOS,
    "bos_token_id": None,
}
TOWER = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4, "intermediate_size": 48}
M_ROPE = {"rope_parameters": {"rope_type": "default", "mrope_section": [2, 1, 1], "rope_theta": 10000.0}}
MERGED = {"patch_size": 4, "spatial_merge_size": 2, "temporal_patch_size": 2, "in_channels": 3, "num_heads": 2}


def llava_model(text: dict[str, Any], ids: dict[str, Any]) -> Any:
    vision = CLIPVisionConfig(patch_size=8, image_size=32, **TOWER)
    options = {"vision_feature_select_strategy": "default", "vision_feature_layer": -1}
    config = LlavaConfig(vision_config=vision, text_config=LlamaConfig(**text), **options, **ids)
    return LlavaForConditionalGeneration(config)


def llava_onevision_model(text: dict[str, Any], ids: dict[str, Any]) -> Any:
    config = LlavaOnevisionConfig(
        vision_config=SiglipVisionConfig(patch_size=8, image_size=32, vision_use_head=False, **TOWER),
        text_config=Qwen2Config(**text),
        image_grid_pinpoints=PINPOINTS,
        vision_aspect_ratio="anyres_max_2",
        **ids,
    )
    return LlavaOnevisionForConditionalGeneration(config)


def internvl_model(text: dict[str, Any], ids: dict[str, Any]) -> Any:
    vision = InternVLVisionConfig(patch_size=4, image_size=32, layer_scale_init_value=1.0, **TOWER)
    config = InternVLConfig(vision_config=vision, text_config=Qwen2Config(**text), downsample_ratio=0.5, **ids)
    return InternVLForConditionalGeneration(config)


def qwen2_vl_model(text: dict[str, Any], ids: dict[str, Any]) -> Any:
    vision = MERGED | {"depth": 1, "embed_dim": 32, "hidden_size": 32, "mlp_ratio": 2}
    return Qwen2VLForConditionalGeneration(Qwen2VLConfig(text_config=text | M_ROPE, vision_config=vision, **ids))


def qwen2_5_vl_model(text: dict[str, Any], ids: dict[str, Any]) -> Any:
    vision = MERGED | {"depth": 1, "hidden_size": 32, "out_hidden_size": 32, "intermediate_size": 48}
    windows = {"window_size": 16, "fullatt_block_indexes": [0], "tokens_per_second": 2}
    config = Qwen2_5_VLConfig(text_config=text | M_ROPE, vision_config=vision | windows, **ids)
    return Qwen2_5_VLForConditionalGeneration(config)


def text_model(text: dict[str, Any], _ids: dict[str, Any]) -> Any:
    return Qwen2ForCausalLM(Qwen2Config(**text))


FAMILIES: dict[str, tuple[Callable[[], Any], Callable[[dict[str, Any], dict[str, Any]], Any]]] = {
    "llava": (llava, llava_model),
    "llava_onevision": (llava_onevision, llava_onevision_model),
    "qwen2_vl": (lambda: qwen(Qwen2VLProcessor), qwen2_vl_model),
    "qwen2_5_vl": (lambda: qwen(Qwen2_5_VLProcessor), qwen2_5_vl_model),
    "internvl": (internvl, internvl_model),
    "text": (text_only, text_model),
}


@dataclass(frozen=True, slots=True)
class Family:
    """A processor and what makes a model for it."""

    name: str
    processor: Any
    build: Callable[[dict[str, Any], dict[str, Any]], Any]

    @property
    def sees(self) -> bool:
        return self.name != "text"

    def usable(self, records: list[Record]) -> list[Record]:
        return [record for record in records if self.sees or not record.images]

    def model(self, role: str) -> Any:
        """A random model that evaluates."""
        torch.manual_seed(len(role))
        processor, ids = self.processor, {"tie_word_embeddings": True}
        text = TEXT | {"vocab_size": VOCABULARY[role], "num_hidden_layers": DEPTH[role]}
        if self.sees:
            ids["image_token_id"] = processor.image_token_id
        if hasattr(processor, "video_token"):
            ids["video_token_id"] = processor.tokenizer.convert_tokens_to_ids(processor.video_token)
        if self.name.startswith("qwen"):
            for name in ("vision_start", "vision_end"):
                ids[f"{name}_token_id"] = processor.tokenizer.convert_tokens_to_ids(f"<|{name}|>")
        return self.build(text, ids).eval()


def make_family(name: str) -> Family:
    make_processor, build = FAMILIES[name]
    return Family(name, make_processor(), build)


@pytest.fixture(params=list(FAMILIES))
def family(request: pytest.FixtureRequest) -> Family:
    return make_family(request.param)


@pytest.fixture
def llava_family() -> Family:
    return make_family("llava")


@pytest.fixture
def text_family() -> Family:
    return make_family("text")


@pytest.fixture
def smaller_images() -> Any:
    """A Llava processor that makes 4 tokens of an image where the family's makes 16."""
    return llava(16)


@pytest.fixture(scope="session")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Four images of noise, wide, tall, small and large."""
    folder = tmp_path_factory.mktemp("pictures")
    for number, (width, height) in enumerate(SIZES):
        pixels = torch.randint(256, (height * width * 3,), generator=torch.Generator().manual_seed(number))
        Image.frombytes("RGB", (width, height), bytes(pixels.tolist())).save(folder / f"{number}.png")
    return [folder / f"{number}.png" for number in range(len(SIZES))]


@pytest.fixture(scope="session")
def mixture(pictures: list[Path]) -> list[Record]:
    """One image, two with free places, none, two with fixed places, several turns, one image in a later turn."""
    wide, tall, small, large = pictures
    ask = (Turn("what is this", "red"),)
    later = (Turn("this or that", "this"), Turn("and is <image> it", "no"))
    return [
        Record("one", (wide,), ask),
        Record("two", (tall, small), (Turn("what is this and that", "red or blue"),)),
        Record("text", (), (Turn("red or blue", "blue"), Turn("is it green", "no it is not"))),
        Record("fixed", (large, wide), (Turn("is <image> this or <image> that", "yes"), *ask)),
        Record("turns", (small,), (*ask, Turn("is it green", "no it is red"))),
        Record("later", (large,), later),
    ]
