"""The configuration of a model directory."""

from pathlib import Path
from typing import Any

from transformers import AutoConfig

from edgevlm.errors import ModelDirectoryError
from vlmpress.artifact import import_model_code


def saved_config(directory: Path) -> Any:
    """What a `save_pretrained` directory or a pack says its model is; its weights are not read.

    Raises:
        ArtifactError: No readable config.json, or no installed distribution offers what it names.
        ModelDirectoryError: The configuration is none that transformers knows.
    """
    import_model_code(directory)
    try:
        return AutoConfig.from_pretrained(directory, local_files_only=True)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ModelDirectoryError(f"{directory}: expected a model's configuration, got: {error}") from error
