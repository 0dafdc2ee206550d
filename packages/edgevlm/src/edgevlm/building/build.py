"""Builds an edge model from trained parts."""

import copy
from typing import Any

import torch

from edgevlm.building.templates import template_with_images
from edgevlm.errors import BuildError, ModelInputError
from edgevlm.model.configuration import VISION_TYPES, EdgeVlmConfig
from edgevlm.model.modeling import EdgeVlmForConditionalGeneration
from edgevlm.model.processing import EdgeVlmProcessor


def build(
    vision_model: Any,
    text_model: Any,
    image_processor: Any,
    tokenizer: Any,
    *,
    num_compressed_tokens: int,
    fusion: str = "combined",
    compressor: str = "mlp",
    seed: int = 0,
    image_token: str = "<image>",
    chat_template: str | None = None,
    **config: Any,
) -> tuple[EdgeVlmForConditionalGeneration, EdgeVlmProcessor]:
    """An edge model from a vision tower and a causal language model, with fresh connectors.

    The parts' weights are copied; the fusion's decoder layers start as copies of the first language layers.

    Args:
        vision_model: SigLIP2, SigLIP or CLIP vision model.
        text_model: Qwen2 or Llama causal language model.
        image_processor: The tower's.
        tokenizer: The language model's; `image_token` is added if it does not know it.
        num_compressed_tokens: Visual tokens of an image that the language model sees.
        fusion: "none", "cross", "decoder" or "combined".
        compressor: "mlp", "conv", "maxpool" or "none".
        seed: Of the connectors' initialisation; the global generator is left as it was.
        image_token: Placeholder in prompts.
        chat_template: For the processor; the tokenizer's by default. One for text alone is taught to read images.
        **config: More fields of EdgeVlmConfig.

    Raises:
        BuildError: The parts do not fit together.
    """
    tokenizer = copy.deepcopy(tokenizer)
    if image_token not in tokenizer.get_vocab():
        tokenizer.add_tokens([image_token], special_tokens=True)
    model = _fresh(
        vision_model.config, text_model.config, text_model.dtype, seed,
        image_token_id=tokenizer.convert_tokens_to_ids(image_token), num_compressed_tokens=num_compressed_tokens,
        fusion=fusion, compressor=compressor, **config,
    )  # fmt: skip
    _check_image_processor(image_processor, model.config)
    model.model.vision_tower.load_state_dict(_without_head(vision_model, model.model.vision_tower))
    model.model.language_model.load_state_dict(text_model.get_decoder().state_dict())
    _finish(model, text_model)
    if len(tokenizer) > model.config.get_text_config().vocab_size:
        model.resize_token_embeddings(len(tokenizer))
    return model, EdgeVlmProcessor(
        image_processor=image_processor,
        tokenizer=tokenizer,
        num_compressed_tokens=num_compressed_tokens,
        image_token=image_token,
        chat_template=_template(chat_template or getattr(tokenizer, "chat_template", None), image_token),
    )


def build_from_llava(
    llava_model: Any,
    llava_processor: Any,
    *,
    num_compressed_tokens: int = 16,
    fusion: str = "combined",
    compressor: str = "mlp",
    seed: int = 0,
    position_mode: str = "uncompressed",
    **config: Any,
) -> tuple[EdgeVlmForConditionalGeneration, EdgeVlmProcessor]:
    """An edge model from a trained Llava: its tower, projector, language model, tokenizer and template.

    With the MLP compressor's start as a group average, silent fusion and uncompressed positions it
    answers at once like the Llava with average-pooled visual tokens.

    Raises:
        BuildError: The Llava uses several feature layers, keeps CLIP's class token, or its parts do not fit.
    """
    source, parts = llava_model.config, llava_model.model
    if not isinstance(source.vision_feature_layer, int):
        raise BuildError(f"vision_feature_layer: expected one layer, got {source.vision_feature_layer}")
    strategy = "default" if source.vision_config.model_type == "clip_vision_model" else "full"
    if source.vision_feature_select_strategy != strategy:
        raise BuildError(
            f"vision_feature_select_strategy: expected {strategy!r} for {source.vision_config.model_type}, "
            f"got {source.vision_feature_select_strategy!r}"
        )
    model = _fresh(
        source.vision_config, source.text_config, llava_model.dtype, seed,
        image_token_id=source.image_token_id, num_compressed_tokens=num_compressed_tokens, fusion=fusion,
        compressor=compressor, position_mode=position_mode, vision_feature_layer=source.vision_feature_layer,
        projector_hidden_act=source.projector_hidden_act, projector_bias=source.multimodal_projector_bias,
        tie_word_embeddings=source.tie_word_embeddings, **config,
    )  # fmt: skip
    model.model.vision_tower.load_state_dict(parts.vision_tower.state_dict())
    model.model.multi_modal_projector.load_state_dict(parts.multi_modal_projector.state_dict())
    model.model.language_model.load_state_dict(parts.language_model.state_dict())
    _finish(model, llava_model)
    return model, EdgeVlmProcessor(
        image_processor=copy.deepcopy(llava_processor.image_processor),
        tokenizer=copy.deepcopy(llava_processor.tokenizer),
        num_compressed_tokens=num_compressed_tokens,
        image_token=llava_processor.image_token,
        chat_template=llava_processor.chat_template,
    )


def _fresh(
    vision_config: Any, text_config: Any, dtype: torch.dtype, seed: int, **config: Any
) -> EdgeVlmForConditionalGeneration:
    vision_config = copy.deepcopy(vision_config)
    if vision_config.model_type not in VISION_TYPES:
        raise BuildError(f"vision model: expected one of {sorted(VISION_TYPES)}, got {vision_config.model_type!r}")
    if hasattr(vision_config, "vision_use_head"):
        vision_config.vision_use_head = False
    try:
        edge_config = EdgeVlmConfig(vision_config=vision_config, text_config=copy.deepcopy(text_config), **config)
    except ModelInputError as error:
        raise BuildError(str(error)) from error
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        # Not model.to(dtype) afterwards: that would round the rotary tables too.
        return EdgeVlmForConditionalGeneration._from_config(edge_config, dtype=dtype)


def _check_image_processor(image_processor: Any, config: EdgeVlmConfig) -> None:
    """An image processor of another model makes images that the tower refuses, only later."""
    vision: Any = config.vision_config
    if config.vision_encoder == "siglip2":
        wanted, got = int(config.num_visual_tokens or 0), getattr(image_processor, "max_num_patches", None)
        fits = got is not None and got <= wanted
        described = f"one of NaFlex patches, at most {wanted}"
    else:
        size = (
            getattr(image_processor, "crop_size", None) if getattr(image_processor, "do_center_crop", False) else None
        )
        size = dict(size or getattr(image_processor, "size", None) or {})
        wanted, got = int(vision.image_size), (size.get("height"), size.get("width"))
        fits, described = got == (wanted, wanted), f"one of {wanted} x {wanted} pixels"
    if not fits:
        raise BuildError(f"image processor: expected {described}, got {type(image_processor).__name__} of {got}")


def _template(template: Any, image_token: str) -> Any:
    return template_with_images(template, image_token) if isinstance(template, str) else template


def _without_head(vision_model: Any, tower: Any) -> dict[str, torch.Tensor]:
    wanted = tower.state_dict().keys()
    return {name: value for name, value in vision_model.state_dict().items() if name in wanted}


def _finish(model: EdgeVlmForConditionalGeneration, source: Any) -> None:
    """Head, tied or copied; fusion decoder; generation settings; evaluation mode."""
    if model.config.tie_word_embeddings:
        model.tie_weights()
    else:
        model.lm_head.load_state_dict(source.get_output_embeddings().state_dict())
    model.model.copy_fusion_decoder()
    if getattr(source, "generation_config", None) is not None:
        model.generation_config = copy.deepcopy(source.generation_config)
    model.eval()
