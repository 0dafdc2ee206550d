"""Tiny models of the real classes, with processors, random weights and a fixed seed."""

import io
from types import SimpleNamespace

import pytest
import torch
from PIL import Image
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    CLIPImageProcessorPil,
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Siglip2ImageProcessorPil,
    Siglip2VisionConfig,
    SiglipVisionConfig,
)

from edgevlm import EdgeVlmConfig, EdgeVlmForConditionalGeneration, EdgeVlmProcessor, Engine
from edgevlm.serving.requests import GenerationRequest

VOCABULARY = "<pad> <unk> <s> </s> <image> USER ASSISTANT what is the shape color red green blue circle square yes no"
WORDS = VOCABULARY.split()
TEMPLATE = (
    "<s>USER {% for part in messages[0]['content'] %}{% if part['type'] == 'image' %}<image>"
    "{% else %} {{ part['text'] }}{% endif %}{% endfor %}{% if add_generation_prompt %} ASSISTANT{% endif %}"
)


@pytest.fixture(autouse=True)
def one_thread():
    torch.set_num_threads(1)
    torch.manual_seed(0)


def make_tokenizer():
    inner = Tokenizer(models.WordLevel({word: index for index, word in enumerate(WORDS)}, unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    inner.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(
        tokenizer_object=inner,
        pad_token="<pad>",
        unk_token="<unk>",
        bos_token="<s>",
        eos_token="</s>",
        additional_special_tokens=["<image>"],
    )


def make_text_config(kind="llama", **changes):
    config_class = {"llama": LlamaConfig, "qwen2": Qwen2Config}[kind]
    settings = {
        "vocab_size": len(WORDS), "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 128,
        "tie_word_embeddings": True, "initializer_range": 0.125, "pad_token_id": 0,
        "bos_token_id": 2, "eos_token_id": 3,
    }  # fmt: skip
    return config_class(**(settings | changes))


def make_vision_config(kind="clip"):
    shared = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}
    if kind == "siglip2":
        return Siglip2VisionConfig(**shared, patch_size=8, num_patches=16, vision_use_head=False)
    config_class = {"clip": CLIPVisionConfig, "siglip": SiglipVisionConfig}[kind]
    return config_class(**shared, patch_size=8, image_size=32)


def make_clip_image_processor():
    return CLIPImageProcessorPil(
        size={"height": 32, "width": 32}, crop_size={"height": 32, "width": 32},
        image_mean=[0.5] * 3, image_std=[0.5] * 3,
    )  # fmt: skip


def make_llava(**text_changes):
    torch.manual_seed(1)
    text = make_text_config(**text_changes)
    config = LlavaConfig(
        vision_config=make_vision_config(), text_config=text, image_token_index=WORDS.index("<image>"),
        vision_feature_layer=-1,
        tie_word_embeddings=True,
    )  # fmt: skip
    model = LlavaForConditionalGeneration(config).eval()
    processor = LlavaProcessor(
        image_processor=make_clip_image_processor(), tokenizer=make_tokenizer(), patch_size=8,
        vision_feature_select_strategy="default", num_additional_image_tokens=1, chat_template=TEMPLATE,
    )  # fmt: skip
    return model, processor


@pytest.fixture
def llava():
    return make_llava()


@pytest.fixture
def llava_directory(llava, tmp_path):
    model, processor = llava
    model.save_pretrained(tmp_path / "llava")
    processor.save_pretrained(tmp_path / "llava")
    return tmp_path / "llava"


def make_image(seed=0, size=(40, 30), mode="RGB"):
    generator = torch.Generator().manual_seed(seed)
    pixels = torch.randint(0, 256, (size[1], size[0], 3), generator=generator, dtype=torch.uint8)
    return Image.fromarray(pixels.numpy()).convert(mode)


def encoded(image, kind="PNG", **settings):
    buffer = io.BytesIO()
    image.save(buffer, kind, **settings)
    return buffer.getvalue()


def make_edge(fusion="combined", vision="clip", text="llama", num_compressed=4, open_gates=True, **changes):
    """An edge model whose gates are open, so that what passes through them shows."""
    torch.manual_seed(2)
    config = EdgeVlmConfig(
        vision_config=make_vision_config(vision), text_config=make_text_config(text), fusion=fusion,
        image_token_id=WORDS.index("<image>"), num_compressed_tokens=num_compressed, **changes,
    )  # fmt: skip
    model = EdgeVlmForConditionalGeneration(config).eval()
    if open_gates:
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if name.endswith("gate"):
                    parameter.fill_(0.7)
    return model


def make_inputs(model, questions=((7, 8, 9, 10),), seed=3, images=None):
    """Rows `<s> USER image question ASSISTANT answer`, one image each, no padding."""
    generator = torch.Generator().manual_seed(seed)
    vision, num_images = model.config.vision_config, len(questions) if images is None else images
    head = [2, 5] + [4] * model.config.num_compressed_tokens
    inputs = {"input_ids": torch.tensor([head + list(question) for question in questions])}
    if vision.model_type == "siglip2_vision_model":
        inputs["pixel_values"] = torch.randn(num_images, 16, 3 * 8 * 8, generator=generator)
        inputs["spatial_shapes"] = torch.tensor([[3, 4], [4, 4], [2, 5]])[:num_images]
        num_patches = inputs["spatial_shapes"].prod(1, keepdim=True)
        inputs["pixel_attention_mask"] = (torch.arange(16) < num_patches).int()
    else:
        inputs["pixel_values"] = torch.randn(num_images, 3, 32, 32, generator=generator)
    return inputs


@pytest.fixture(scope="session")
def tiny():
    return SimpleNamespace(
        words=WORDS, template=TEMPLATE, tokenizer=make_tokenizer, text_config=make_text_config,
        vision_config=make_vision_config, llava=make_llava, image=make_image, encoded=encoded,
        edge=make_edge, inputs=make_inputs,
        clip_image_processor=make_clip_image_processor,
    )  # fmt: skip


QUESTIONS = ("what is the shape", "is the circle red", "what is the color of the red square yes", "no", "blue yes red")


def make_request(number, *, num_tokens=None, **fields):
    """The same question, image and length for a number; every fourth is text alone."""
    images = () if number % 4 == 3 else (make_image(number, size=(20 + number % 7, 30)),)
    settings = {"prompt": QUESTIONS[number % len(QUESTIONS)], "images": images}
    return GenerationRequest(max_new_tokens=num_tokens or 1 + number * 5 % 11, **(settings | fields))


def answered_alone(engine, request):
    """Events of a request that has the model to itself."""
    arguments = (request.images, request.prompt, request.max_new_tokens, request.max_visual_tokens)
    return list(engine.generate(*arguments, history=request.history, sampling=request.sampling))


def drained(batcher, events=None):
    """All further events by handle."""
    events = {} if events is None else events
    while batcher.has_work:
        for handle, event in batcher.step():
            events.setdefault(handle, []).append(event)
    return events


def make_edge_processor(model, template=TEMPLATE):
    images = make_clip_image_processor()
    if model.config.vision_encoder == "siglip2":
        images = Siglip2ImageProcessorPil(patch_size=8, max_num_patches=16)
    num_tokens = model.config.num_compressed_tokens
    return EdgeVlmProcessor(images, make_tokenizer(), num_compressed_tokens=num_tokens, chat_template=template)


@pytest.fixture(scope="session")
def engine_of():
    """An engine by what its model is made of, made once; it never ends an answer by itself."""
    made = {}

    def get(name, *options, **changes):
        key = (name, *options, *changes.items())
        if key not in made:
            if name == "llava":
                made[key] = Engine(*make_llava(kind=options[0], **changes))
            else:
                model = make_edge(*options, **changes)
                made[key] = Engine(model, make_edge_processor(model))
            made[key].eos_token_ids = frozenset()
        return made[key]

    return get


@pytest.fixture(scope="session")
def asking():
    return SimpleNamespace(request=make_request, alone=answered_alone, drained=drained, processor=make_edge_processor)
