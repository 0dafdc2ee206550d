"""Models as transformers has them: the class of a config, and the model of a directory."""

from pathlib import Path
from typing import Any

from torch import nn

from quantpack.errors import ModelMismatchError, SourceError
from vlmpress.artifact import import_model_code


def open_model(directory: Path) -> nn.Module:
    """The model of an ordinary directory, in its own dtype: what is quantized in memory.

    Raises:
        SourceError: There is none.
    """
    from transformers import AutoConfig
    from transformers.utils.logging import disable_progress_bar

    if not (directory / "config.json").is_file():
        raise SourceError(f"{directory}: expected a model directory, found no config.json")
    import_model_code(directory)
    disable_progress_bar()
    try:
        config = AutoConfig.from_pretrained(directory, local_files_only=True)
        model: nn.Module = model_class(config, directory).from_pretrained(
            directory, dtype="auto", local_files_only=True
        )
    except (OSError, ValueError, RuntimeError) as error:
        raise SourceError(f"{directory}: expected a model, got {error}") from error
    return model


def model_class(config: Any, directory: Path) -> Any:
    """The class that a model's config is for; ModelMismatchError where transformers has none."""
    from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING, MODEL_MAPPING

    for mapping in (MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING, MODEL_FOR_CAUSAL_LM_MAPPING, MODEL_MAPPING):
        if type(config) in mapping:
            found = mapping[type(config)]
            # A few model types have more than one class of a kind; the config names the one meant.
            choices: list[Any] = list(found) if isinstance(found, tuple | list) else [found]
            named = [choice for choice in choices if choice.__name__ in (config.architectures or ())]
            return (named or choices)[0]
    raise ModelMismatchError(f"{directory}: expected a model type that transformers knows, got {config.model_type!r}")
