"""What is known of a model that decides how its requests may share it.

Only what tests have shown is taken for granted: a model of any other kind answers one request at a time.
"""

from typing import Any

from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

KNOWN_TYPES = ("edgevlm", "llava")
KNOWN_TEXT_TYPES = ("llama", "qwen2")
KNOWN_VISION_TYPES = ("clip_vision_model", "siglip_vision_model", "siglip2_vision_model")
SHARED_INPUTS = frozenset({"input_ids", "pixel_values", "pixel_attention_mask", "spatial_shapes"})
"""Inputs that are put together by rows and images; others belong to models that are not known."""


def may_interleave(model: Any) -> bool:
    """Whether all that a model remembers of a request is in its cache, so that others may come in between."""
    config = model.config
    return config.model_type in KNOWN_TYPES and config.get_text_config().model_type in KNOWN_TEXT_TYPES


def may_prefill_together(model: Any) -> bool:
    """Whether rows may share a prefill: a known model with full attention, whose forward nobody has changed.

    A token reducer or a kept visual compression changes this one instance by methods or hooks of its
    own, and asks for a call a row.
    """
    if not may_interleave(model) or model.config.vision_config.model_type not in KNOWN_VISION_TYPES:
        return False
    layers = DynamicCache(config=model.config).layers
    if not all(type(layer) is DynamicLayer for layer in layers):
        return False
    parts = (model, model.model, model.model.language_model)
    return not any("forward" in part.__dict__ or part._forward_pre_hooks or part._forward_hooks for part in parts)
