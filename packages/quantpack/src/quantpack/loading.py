"""A pack as a runnable model."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from quantpack.errors import ModelMismatchError, NotAPackError
from quantpack.unpacking import read_tensors
from vlmpress.artifact import import_model_code

if TYPE_CHECKING:
    from transformers import PreTrainedConfig


def load(directory: Path, dtype: torch.dtype = torch.float32) -> nn.Module:
    """The model that the pack's config describes, with dequantized weights, in eval mode.

    An image-text-to-text model, or else a causal language model. Tied weights are tied.

    Args:
        directory: A pack of a model directory.
        dtype: Of the model's floating parameters.

    Raises:
        NotAPackError: The directory is no pack, or one of a plain safetensors file.
        CorruptPackError: A byte is not as it was written.
        ModelMismatchError: A tensor is missing, unexpected or of the wrong shape; names it.
    """
    # Packing and unpacking do not need transformers, which takes a second to import.
    from transformers import AutoConfig, GenerationConfig

    directory = Path(directory)
    tensors = read_tensors(directory, dtype)
    if not (directory / "config.json").exists():
        raise NotAPackError(f"{directory}: expected a pack of a model, got one of a plain safetensors file")
    import_model_code(directory)
    config = AutoConfig.from_pretrained(directory)
    # What is built here has ordinary weights; left in, the entry would send transformers after a quantizer.
    del config.quantization_config
    model_class = _model_class(config, directory)
    try:
        # Through from_pretrained, for a checkpoint's names are not always the model's own.
        model, info = model_class.from_pretrained(
            None, config=config, state_dict=tensors, dtype=dtype, output_loading_info=True
        )
    except (RuntimeError, ValueError) as error:
        raise ModelMismatchError(f"{directory}: expected the model's tensors, got {error}") from error
    for fault in ("missing_keys", "unexpected_keys", "mismatched_keys", "error_msgs"):
        if info.get(fault):
            names = ", ".join(sorted(str(name) for name in info[fault])[:3])
            raise ModelMismatchError(
                f"{directory}: expected the model's tensors, got {fault.replace('_', ' ')}: {names}"
            )
    if (directory / "generation_config.json").exists():
        model.generation_config = GenerationConfig.from_pretrained(directory)
    model.eval()
    return model


def _model_class(config: "PreTrainedConfig", directory: Path) -> Any:
    from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING

    for mapping in (MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING, MODEL_FOR_CAUSAL_LM_MAPPING):
        if type(config) in mapping:
            found = mapping[type(config)]
            # A few model types have more than one class of a kind; the config names the one meant.
            choices: list[Any] = list(found) if isinstance(found, tuple | list) else [found]
            named = [choice for choice in choices if choice.__name__ in (config.architectures or ())]
            return (named or choices)[0]
    raise ModelMismatchError(
        f"{directory}: expected an image-text-to-text or causal language model, got model type {config.model_type!r}"
    )
