"""Small models of the real Hugging Face classes, to be trained from scratch."""

import copy
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import (
    CLIPImageProcessorPil,
    CLIPVisionConfig,
    CLIPVisionModel,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedTokenizerFast,
)

from vlmpress.data import Record

IMAGE, USER, ASSISTANT, END, PAD, UNKNOWN = "<image>", "<user>", "<assistant>", "</s>", "<pad>", "<unk>"
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{{ '<user>' if message.role == 'user' else '<assistant>' }}"
    "{% if message.content is string %}{{ message.content }}{% else %}"
    "{% for part in message.content %}{{ '<image>' if part.type == 'image' else part.text }}{% endfor %}{% endif %}"
    "{{ '</s>' if message.role == 'assistant' }}"
    "{% endfor %}{{ '<assistant>' if add_generation_prompt }}"
)
VISION_STD = 0.06
LANGUAGE_STD = 0.125
MAX_VOCABULARY = 8192


@dataclass(frozen=True, kw_only=True, slots=True)
class TinyShape:
    """Sizes of the small models; the defaults are those that train in minutes on one core."""

    image_px: int = 64
    patch_px: int = 8
    hidden_size: int = 64
    num_heads: int = 4
    num_vision_layers: int = 2
    vision_intermediate_size: int = 128
    language_intermediate_size: int = 160
    max_positions: int = 1024

    @property
    def num_visual_tokens(self) -> int:
        """Patches of one image."""
        return (self.image_px // self.patch_px) ** 2


def build_tokenizer(records: Iterable[Record]) -> PreTrainedTokenizerFast:
    """A word-level tokenizer over the words of the records, lower-cased, punctuation apart, spaces kept."""
    tokenizer = Tokenizer(models.WordLevel(unk_token=UNKNOWN))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Metaspace(), pre_tokenizers.Punctuation()])
    tokenizer.decoder = decoders.Metaspace()
    special = [PAD, UNKNOWN, END, USER, ASSISTANT, IMAGE]
    trainer = trainers.WordLevelTrainer(vocab_size=MAX_VOCABULARY, special_tokens=special, show_progress=False)
    texts = (text for record in records for turn in record.turns for text in (turn.question, turn.answer))
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=PAD,
        unk_token=UNKNOWN,
        eos_token=END,
        additional_special_tokens=[USER, ASSISTANT, IMAGE],
        extra_special_tokens={"image_token": IMAGE},
        chat_template=CHAT_TEMPLATE,
        padding_side="right",
        clean_up_tokenization_spaces=False,
    )


def build_processor(records: Iterable[Record], shape: TinyShape) -> LlavaProcessor:
    """Tokenizer, image processor (pixels scaled to -1..1) and chat template in one."""
    image_processor = CLIPImageProcessorPil(
        size={"height": shape.image_px, "width": shape.image_px},
        do_center_crop=False,
        image_mean=[0.5] * 3,
        image_std=[0.5] * 3,
    )
    return LlavaProcessor(
        image_processor=image_processor,
        tokenizer=build_tokenizer(records),
        patch_size=shape.patch_px,
        vision_feature_select_strategy="default",
        chat_template=CHAT_TEMPLATE,
        num_additional_image_tokens=1,  # CLIP's class token, which the strategy "default" drops
    )


def build_tower(shape: TinyShape, seed: int) -> CLIPVisionModel:
    """A CLIP vision tower with normal weights of standard deviation 0.06."""
    torch.manual_seed(seed)
    config = CLIPVisionConfig(
        hidden_size=shape.hidden_size,
        intermediate_size=shape.vision_intermediate_size,
        num_hidden_layers=shape.num_vision_layers,
        num_attention_heads=shape.num_heads,
        image_size=shape.image_px,
        patch_size=shape.patch_px,
    )
    tower = CLIPVisionModel(config)
    for name, parameter in tower.named_parameters():
        if parameter.dim() > 1 or name.endswith("class_embedding"):
            torch.nn.init.normal_(parameter, std=VISION_STD)
    return tower


def build_llava(
    tower: CLIPVisionModel, processor: LlavaProcessor, shape: TinyShape, num_layers: int, seed: int
) -> LlavaForConditionalGeneration:
    """A Llava model around a trained tower, its projector and decoder fresh.

    Args:
        tower: Its weights are copied.
        processor: Gives the vocabulary and the image token.
        shape: Sizes.
        num_layers: Decoder layers.
        seed: Fixes the fresh weights.
    """
    torch.manual_seed(seed)
    tokenizer = processor.tokenizer
    text = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=shape.hidden_size,
        intermediate_size=shape.language_intermediate_size,
        num_hidden_layers=num_layers,
        num_attention_heads=shape.num_heads,
        num_key_value_heads=shape.num_heads,
        max_position_embeddings=shape.max_positions,
        initializer_range=LANGUAGE_STD,
        tie_word_embeddings=True,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
    )
    vision = copy.deepcopy(tower.config)
    vision._name_or_path = ""  # where it was loaded from is nobody's business later
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
    model.model.vision_tower.load_state_dict(tower.state_dict())
    for parameter in model.model.multi_modal_projector.parameters():
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=LANGUAGE_STD)
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    return model
