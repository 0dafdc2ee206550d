"""A small Llava of the real classes with 64 visual tokens an image, and the ids of its words."""

from collections.abc import Sequence

import torch
from auroraedge.questions import PATCH, SIDE
from tokenizers import Tokenizer, models, pre_tokenizers
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

PAD, END, USER, ASSISTANT, IMAGE = SPECIAL = ["<pad>", "</s>", "<user>", "<assistant>", "<image>"]
TEMPLATE = (
    "{% for message in messages %}{{ '<user>' if message.role == 'user' else '<assistant>' }}"
    "{% for part in message.content %}{{ '<image>' if part.type == 'image' else ' ' + part.text }}{% endfor %}"
    "{{ '</s>' if message.role == 'assistant' }}{% endfor %}{{ '<assistant>' if add_generation_prompt }}"
)
VISION_STD, TEXT_STD, EMBEDDING_STD = 0.06, 0.125, 0.5
BRANCH_SCALE = 0.3
"""Of what each attention and each MLP begins to add: words that drown in it are bound to patches late or never."""
NUM_FEATURES = 64


def build_processor(words: Sequence[str]) -> LlavaProcessor:
    """A tokenizer of whole words, and an image processor that scales pixels to -1..1."""
    ids = {word: number for number, word in enumerate([*SPECIAL, *words])}
    inner = Tokenizer(models.WordLevel(ids, unk_token=PAD))
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=inner,
        pad_token=PAD,
        eos_token=END,
        additional_special_tokens=[USER, ASSISTANT, IMAGE],
    )
    images = CLIPImageProcessorPil(
        size={"height": SIDE, "width": SIDE}, do_center_crop=False, image_mean=[0.5] * 3, image_std=[0.5] * 3
    )
    return LlavaProcessor(
        image_processor=images,
        tokenizer=tokenizer,
        patch_size=PATCH,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=TEMPLATE,
        image_token=IMAGE,
    )


def build_model(processor: LlavaProcessor, num_layers: int, seed: int) -> LlavaForConditionalGeneration:
    """A Llava with normal weights, wide enough to bind words to patches."""
    torch.manual_seed(seed)
    tokenizer = processor.tokenizer
    vision = CLIPVisionConfig(
        hidden_size=NUM_FEATURES,
        intermediate_size=2 * NUM_FEATURES,
        num_hidden_layers=2,
        num_attention_heads=4,
        image_size=SIDE,
        patch_size=PATCH,
    )
    text = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=NUM_FEATURES,
        intermediate_size=160,
        num_hidden_layers=num_layers,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=1024,
        initializer_range=TEXT_STD,
        # Words find patches by what they are, whatever the distance: most pairs must hardly turn.
        rope_parameters={"rope_type": "default", "rope_theta": 1e6},
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
        tie_word_embeddings=True,
    )
    model = LlavaForConditionalGeneration(config)
    for part, std in ((model.model.vision_tower, VISION_STD), (model.model.multi_modal_projector, TEXT_STD)):
        for name, parameter in part.named_parameters():
            if parameter.dim() > 1 or name.endswith("class_embedding"):
                nn.init.normal_(parameter, std=std)
    decoder = model.model.language_model
    nn.init.normal_(decoder.embed_tokens.weight, std=EMBEDDING_STD)
    with torch.no_grad():
        for layer in decoder.layers:
            attention = layer.self_attn
            # Attention begins by finding what is like its query and copying it: random keys are like nothing.
            attention.k_proj.weight.copy_(attention.q_proj.weight)
            attention.o_proj.weight.copy_(BRANCH_SCALE * attention.v_proj.weight.T)
            layer.mlp.down_proj.weight *= BRANCH_SCALE
    return model
