"""The tiny Llava model of the benchmark and its words."""

import torch
from torch import Tensor, nn
from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration
from vlm.data import COLOURS, PATCH, SHAPES, SIDE

PAD, BOS, IMAGE = 0, 1, 2
_WORDS = ("<pad>", "<s>", "<image>", "any", "colour", "of", "?", "yes", "no", *COLOURS, *SHAPES)
ID_OF = {word: index for index, word in enumerate(_WORDS)}
ANSWERS = ("yes", "no", *COLOURS)
# Init as measured for models of this size: the stock 0.02 leaves every token alike.
_VISION_STD, _TEXT_STD = 0.06, 0.125


def build_model(seed: int) -> LlavaForConditionalGeneration:
    torch.manual_seed(seed)
    vision = CLIPVisionConfig(
        hidden_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=160,
        patch_size=PATCH,
        image_size=SIDE,
    )
    text = LlamaConfig(
        vocab_size=len(_WORDS),
        hidden_size=64,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=4,
        intermediate_size=160,
        tie_word_embeddings=True,
        pad_token_id=PAD,
        bos_token_id=BOS,
        eos_token_id=PAD,
    )
    config = LlavaConfig(
        vision_config=vision,
        text_config=text,
        image_token_id=IMAGE,
        tie_word_embeddings=True,
        vision_feature_layer=-1,
        vision_feature_select_strategy="default",
    )
    model = LlavaForConditionalGeneration(config)
    for part, std in (
        (model.model.vision_tower, _VISION_STD),
        (model.model.multi_modal_projector, _TEXT_STD),
        (model.model.language_model, _TEXT_STD),
    ):
        for parameter in part.parameters():
            if parameter.ndim >= 2:
                nn.init.normal_(parameter, std=std)
    return model.eval()


def as_pixel_values(pixels: Tensor) -> Tensor:
    """uint8 [N, H, W, 3] -> float32 [N, 3, H, W] between -1 and 1."""
    return pixels.permute(0, 3, 1, 2).float() / 127.5 - 1
