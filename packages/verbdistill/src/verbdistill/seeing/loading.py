"""Model directories."""

from pathlib import Path
from typing import Any

from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForImageTextToText, AutoProcessor
from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING

from verbdistill.errors import ConfigError
from vlmpress.artifact import ArtifactError, import_model_code


def load_model(directory: Path) -> tuple[Any, Any]:
    """A model, on the CPU, and its processor; a language model and its tokenizer.

    Raises:
        ConfigError: The directory does not hold them.
    """
    try:
        import_model_code(directory)
        sees = type(AutoConfig.from_pretrained(directory)) in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING
        kind = AutoModelForImageTextToText if sees else AutoModelForCausalLM
        return kind.from_pretrained(directory), AutoProcessor.from_pretrained(directory)
    except (ArtifactError, OSError, ValueError, KeyError) as error:
        raise ConfigError(f"{directory}: expected a model directory with its processor, got {error}") from error
