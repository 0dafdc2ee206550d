"""Model directories."""

from pathlib import Path
from typing import Any

from transformers import AutoModelForImageTextToText, AutoProcessor

from verbdistill.errors import ConfigError
from vlmpress.artifact import ArtifactError, import_model_code


def load_model(directory: Path) -> tuple[Any, Any]:
    """A model, on the CPU, and its processor.

    Raises:
        ConfigError: The directory does not hold them.
    """
    try:
        import_model_code(directory)
        return AutoModelForImageTextToText.from_pretrained(directory), AutoProcessor.from_pretrained(directory)
    except (ArtifactError, OSError, ValueError, KeyError) as error:
        raise ConfigError(f"{directory}: expected a model directory with its processor, got {error}") from error
