"""Writes safetensors files."""

from collections.abc import Mapping
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor


def save_tensors(tensors: Mapping[str, Tensor], path: Path) -> None:
    """Writes tensors as one safetensors file that its owner writes and everyone reads.

    Raises:
        OSError: It cannot be written, for example because the disk is full.
    """
    try:
        save_file(dict(tensors), path, metadata={"format": "pt"})
    except SafetensorError as error:
        raise OSError(f"{path}: cannot be written: {error}") from error
    # The library makes it readable for its owner only.
    path.chmod(0o644)
