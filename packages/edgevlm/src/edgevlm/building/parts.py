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

VISION_CLASSES: dict[str, Any] = {"clip": CLIPVisionModel, "siglip": SiglipVisionModel, "siglip2": Siglip2VisionModel}


def load_parts(vision: Path, llm: Path) -> tuple[Any, Any, Any, Any]:
    """Vision model, language model, image processor and tokenizer, as `build` takes them.

    Args:
        vision: Vision model or a whole CLIP, SigLIP or SigLIP2, with its image processor.
        llm: Causal language model with its tokenizer.

    Raises:
        ModelDirectoryError: A directory does not hold what it should.
    """
    kind = _loaded(AutoConfig, vision, "a vision model's configuration").model_type.removesuffix("_vision_model")
    if kind not in VISION_CLASSES:
        raise ModelDirectoryError(f"{vision}: expected a vision model of {sorted(VISION_CLASSES)}, got {kind!r}")
    return (
        _loaded(VISION_CLASSES[kind], vision, "a vision model"),
        _loaded(AutoModelForCausalLM, llm, "a causal language model"),
        _loaded(AutoImageProcessor, vision, "an image processor"),
        _loaded(AutoTokenizer, llm, "a tokenizer"),
    )


def _loaded(loader: Any, directory: Path, what: str) -> Any:
    if not directory.is_dir():
        raise ModelDirectoryError(f"{directory}: expected a directory with {what}, found none")
    try:
        return loader.from_pretrained(directory, local_files_only=True)
    except (OSError, ValueError, KeyError) as error:
        raise ModelDirectoryError(f"{directory}: expected {what}, got: {error}") from error
