"""Restores the tensors of a pack under their original names."""

import tempfile
from pathlib import Path

import torch
from torch import Tensor

from quantpack.container.header import encode_header
from quantpack.container.planes import DTYPE_NAMES, DTYPES, as_bytes
from quantpack.container.reading import PackReader
from quantpack.errors import OutputExistsError
from quantpack.opening import open_pack
from quantpack.progress import OnProgress


def read_tensors(
    directory: Path, dtype: torch.dtype | None = None, on_progress: OnProgress | None = None
) -> dict[str, Tensor]:
    """Every tensor of a pack by its original name; quantized ones are dequantized.

    Args:
        directory: A pack.
        dtype: Of floating tensors; by default each keeps its source dtype, and kept ones their bits.
        on_progress: Called after each tensor.

    Raises:
        NotAPackError: The directory is no pack.
        CorruptPackError: A byte is not as it was written.
    """
    _, weights = open_pack(Path(directory), check_bytes=True)
    return _read_all(weights, dtype, on_progress)


def unpack(directory: Path, out: Path, dtype: torch.dtype | None = None, on_progress: OnProgress | None = None) -> Path:
    """Writes `read_tensors` as one safetensors file, whole or not at all; returns `out`.

    Raises:
        OutputExistsError: `out` exists.
        NotAPackError: The directory is no pack.
        CorruptPackError: A byte is not as it was written.
    """
    out = Path(out)
    if out.exists():
        raise OutputExistsError(f"{out}: expected a path that does not exist yet")
    _, weights = open_pack(Path(directory), check_bytes=True)
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{out.name}.", suffix=".tmp", dir=out.parent) as folder:
        draft = Path(folder) / out.name
        _write_all(weights, draft, dtype, on_progress)
        draft.rename(out)
    return out


def _read_all(weights: PackReader, dtype: torch.dtype | None, on_progress: OnProgress | None) -> dict[str, Tensor]:
    tensors: dict[str, Tensor] = {}
    names = weights.names
    for position, name in enumerate(names, start=1):
        tensors[name] = weights.tensor(name, dtype)
        if on_progress is not None:
            on_progress(position, len(names), name)
    return tensors


def _write_all(weights: PackReader, path: Path, dtype: torch.dtype | None, on_progress: OnProgress | None) -> None:
    """Tensor by tensor, so that a model larger than memory can be unpacked."""
    rows = []
    for name in weights.names:
        entry = weights.entry(name)
        chosen = dtype if dtype is not None and entry.dtype.is_floating_point else entry.dtype
        rows.append((name, DTYPE_NAMES[chosen], entry.shape, entry.num_weights * chosen.itemsize))
    # Wide elements first: each starts at a multiple of its size.
    rows.sort(key=lambda row: (-DTYPES[row[1]].itemsize, row[0]))
    with path.open("wb") as file:
        file.write(encode_header(rows))
        for position, (name, *_) in enumerate(rows, start=1):
            file.write(as_bytes(weights.tensor(name, dtype)).data)
            if on_progress is not None:
                on_progress(position, len(rows), name)
