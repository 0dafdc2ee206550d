"""Loads the trained parts that an edge model is built from."""

from pathlib import Path
from typing import Any

from transformers import (
    AutoConfig,
    AutoImageProcessor,
    AutoModelForCausalLM,
    AutoTokenizer,
    CLIPVisionModel,
    Siglip2VisionModel,
    SiglipVisionModel,
)

from edgevlm.errors import ModelDirectoryError
from edgevlm.model.loading import load_part, load_strictly

VISION_CLASSES: dict[str, Any] = {"clip": CLIPVisionModel, "siglip": SiglipVisionModel, "siglip2": Siglip2VisionModel}


def load_parts(vision: Path, llm: Path) -> tuple[Any, Any, Any, Any]:
    """Vision model, language model, image processor and tokenizer, as `build` takes them.

    Args:
        vision: Vision model or a whole CLIP, SigLIP or SigLIP2, with its image processor.
        llm: Causal language model with its tokenizer.

    Raises:
        ModelDirectoryError: A directory does not hold what it should, or not all of it.
    """
    config = load_part(AutoConfig, vision, "a vision model's configuration")
    kind = config.model_type.removesuffix("_vision_model")
    if kind not in VISION_CLASSES:
        raise ModelDirectoryError(f"{vision}: expected a vision model of {sorted(VISION_CLASSES)}, got {kind!r}")
    return (
        load_strictly(VISION_CLASSES[kind], vision),
        load_strictly(AutoModelForCausalLM, llm),
        load_part(AutoImageProcessor, vision, "an image processor"),
        load_part(AutoTokenizer, llm, "a tokenizer"),
    )
