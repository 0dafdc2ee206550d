"""A small VLM of the real Hugging Face classes, to be trained from scratch: 64 visual tokens an image."""

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from torch import nn
from transformers import (
    CLIPImageProcessorPil,
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedTokenizerFast,
)

from vlmpress.data import Record

PAD, UNKNOWN, END, USER, ASSISTANT, IMAGE = SPECIAL = ["<pad>", "<unk>", "</s>", "<user>", "<assistant>", "<image>"]
TEMPLATE = (
    "{% for message in messages %}{{ '<user>' if message.role == 'user' else '<assistant>' }}"
    "{% for part in message.content %}{{ '<image>' if part.type == 'image' else part.text }}{% endfor %}"
    "{{ '</s>' if message.role == 'assistant' }}{% endfor %}{{ '<assistant>' if add_generation_prompt }}"
)
VISION_STD, LANGUAGE_STD, EMBEDDING_STD = 0.06, 0.125, 0.5
BRANCH_SCALE = 0.2
"""Of what each attention and each MLP begins to add: words that drown in it are bound to patches late or never."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Shape:
    """Sizes of the model; the width is what trains in minutes on one core."""

    num_layers: int = 8
    image_px: int = 64
    patch_px: int = 8
    hidden_size: int = 64
    intermediate_size: int = 160
    num_heads: int = 4

    @property
    def num_visual_tokens(self) -> int:
        """Patches of an image."""
        return (self.image_px // self.patch_px) ** 2


def build_processor(records: Iterable[Record], shape: Shape) -> LlavaProcessor:
    """Word-level tokenizer over the records' words, and an image processor that scales pixels to -1..1."""
    inner = Tokenizer(models.WordLevel(unk_token=UNKNOWN))
    inner.normalizer = normalizers.Lowercase()
    inner.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Metaspace(), pre_tokenizers.Punctuation()])
    inner.decoder = decoders.Metaspace()
    texts = (text for record in records for turn in record.turns for text in (turn.question, turn.answer))
    inner.train_from_iterator(texts, trainers.WordLevelTrainer(special_tokens=SPECIAL, show_progress=False))
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=inner,
        pad_token=PAD,
        unk_token=UNKNOWN,
        eos_token=END,
        additional_special_tokens=[USER, ASSISTANT, IMAGE],
        extra_special_tokens={"image_token": IMAGE},
        clean_up_tokenization_spaces=False,
    )
    images = CLIPImageProcessorPil(
        size={"height": shape.image_px, "width": shape.image_px},
        do_center_crop=False,
        image_mean=[0.5] * 3,
        image_std=[0.5] * 3,
    )
    return LlavaProcessor(
        image_processor=images,
        tokenizer=tokenizer,
        patch_size=shape.patch_px,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=TEMPLATE,
    )


def build_model(processor: LlavaProcessor, shape: Shape, seed: int) -> LlavaForConditionalGeneration:
    """A Llava with normal weights, those of the language model wide enough to bind words to patches."""
    torch.manual_seed(seed)
    tokenizer = processor.tokenizer
    vision = CLIPVisionConfig(
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        image_size=shape.image_px,
        patch_size=shape.patch_px,
    )
    text = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=shape.hidden_size,
        intermediate_size=shape.intermediate_size,
        num_hidden_layers=shape.num_layers,
        num_attention_heads=shape.num_heads,
        num_key_value_heads=shape.num_heads,
        max_position_embeddings=1024,
        initializer_range=LANGUAGE_STD,
        tie_word_embeddings=True,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
    )
    config = LlavaConfig(
        vision_config=vision,
        text_config=text,
        image_token_index=tokenizer.convert_tokens_to_ids(IMAGE),
        vision_feature_layer=-1,
        vision_feature_select_strategy="default",
        image_seq_length=shape.num_visual_tokens,
        tie_word_embeddings=True,
    )
    model = LlavaForConditionalGeneration(config)
    for part, std in ((model.model.vision_tower, VISION_STD), (model.model.multi_modal_projector, LANGUAGE_STD)):
        for name, parameter in part.named_parameters():
            if parameter.dim() > 1 or name.endswith("class_embedding"):
                nn.init.normal_(parameter, std=std)
    decoder = model.model.language_model
    nn.init.normal_(decoder.embed_tokens.weight, std=EMBEDDING_STD)
    with torch.no_grad():
        for layer in decoder.layers:
            layer.self_attn.o_proj.weight *= BRANCH_SCALE
            layer.mlp.down_proj.weight *= BRANCH_SCALE
    return model
