"""Reads a KL matrix from a file."""

import json
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from verbdistill.errors import MatchingError


def read_matrix(file: Path) -> Tensor:
    """A matrix of nats, float64 [t_s, t_l]: tensor "kld" of a .safetensors file, or a JSON list of rows.

    Raises:
        MatchingError: The file cannot be read or holds no matrix.
    """
    try:
        if file.suffix == ".safetensors":
            tensors = load_file(file)
            if "kld" not in tensors:
                raise MatchingError(f"{file}: expected a tensor named kld, got {', '.join(tensors) or 'none'}")
            return tensors["kld"].double()
        value = json.loads(file.read_text(encoding="utf-8"))
        rows = value.get("kld") if isinstance(value, dict) else value
        return torch.tensor(rows, dtype=torch.float64)
    except (OSError, SafetensorError, ValueError, TypeError, RuntimeError, RecursionError) as error:
        if isinstance(error, MatchingError):
            raise
        raise MatchingError(f"{file}: expected a KL matrix, got {error}") from error
