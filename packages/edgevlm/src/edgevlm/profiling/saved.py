"""The configuration of a model directory."""

from pathlib import Path
from typing import Any

from transformers import AutoConfig

from edgevlm.model.loading import load_part
from vlmpress.artifact import import_model_code


def saved_config(directory: Path) -> Any:
    """What a `save_pretrained` directory or a pack says its model is; its weights are not read.

    Raises:
        ArtifactError: No readable config.json, or no installed distribution offers what it names.
        ModelDirectoryError: The configuration is none that transformers knows.
    """
    import_model_code(directory)
    return load_part(AutoConfig, directory, "a model's configuration")
