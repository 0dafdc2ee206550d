"""Packs, and the models they are made of, as runnable models."""

from pathlib import Path

import torch
from torch import nn

from quantpack.errors import ModelMismatchError, NotAPackError, QuantpackError
from quantpack.models import model_class
from quantpack.opening import open_pack
from quantpack.source import METHOD
from vlmpress.artifact import import_model_code


def load(directory: Path, dtype: torch.dtype = torch.float32) -> nn.Module:
    """The model that the pack's config describes, with dequantized weights, in eval mode.

    An image-text-to-text model, or else a causal language model, or else whatever AutoModel gives. Tied
    weights are tied. Every byte is compared with the manifest first; `from_pretrained`, which this calls,
    does not do that and can keep the weights packed.

    Args:
        directory: A pack of a model directory.
        dtype: Of the model's floating parameters.

    Raises:
        NotAPackError: The directory is no pack, or one of a plain safetensors file.
        CorruptPackError: A byte is not as it was written.
        ModelMismatchError: A tensor is missing, unexpected or of the wrong shape; names it.
    """
    # A second to import, which --help should not cost.
    from transformers import AutoConfig

    directory = Path(directory)
    open_pack(directory, check_bytes=True)
    if not (directory / "config.json").exists():
        raise NotAPackError(f"{directory}: expected a pack of a model, got one of a plain safetensors file")
    import_model_code(directory)
    config = AutoConfig.from_pretrained(directory, local_files_only=True)
    config.quantization_config = {"quant_method": METHOD, "dequantize": True}
    try:
        model: nn.Module = model_class(config, directory).from_pretrained(
            directory, config=config, dtype=dtype, local_files_only=True
        )
    except QuantpackError:
        raise
    except (RuntimeError, ValueError) as error:
        raise ModelMismatchError(f"{directory}: expected a model to be made of it, got {error}") from error
    return model
