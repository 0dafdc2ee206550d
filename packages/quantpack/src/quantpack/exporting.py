"""Packs as compressed-tensors checkpoints of format "pack-quantized", which other libraries load and have kernels for.

A linear layer's weight [O, I] becomes `weight_packed` int32 [O, ceil(I / 8)], eight codes a word, a row's
first code in the lowest bits, each code as an unsigned number that stands for itself less 8; `weight_scale`
[O, G]; `weight_zero_point` int32 [ceil(O / 8), G], packed like the codes but down the columns, where there
are zero points; and `weight_shape`. A weight is (code - zero point) * scale in the scale's dtype.
"""

import json
import re
import shutil
import tempfile
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from quantpack.affine import QuantizedTensor
from quantpack.container.index import Entry
from quantpack.container.reading import PackReader
from quantpack.errors import NotAPackError, OutputExistsError, SchemeError
from quantpack.hf.skeleton import linear_layers
from quantpack.opening import open_pack
from quantpack.progress import OnProgress
from quantpack.source import WEIGHTS

FORMAT = "pack-quantized"
_CODES_PER_WORD = 8
_HALF = 8

# What shares a scale, and its size where it is a group; symmetric or not: all that a config group says.
_Form = tuple[Literal["channel", "group"], int | None, bool]


def export_compressed_tensors(pack_dir: Path, out: Path, on_progress: OnProgress | None = None) -> Path:
    """Writes a pack of a model as a compressed-tensors checkpoint directory, whole or not at all; returns `out`.

    Linear layers keep their codes, and decode to exactly what `dequantize` gives. Everything else is written
    as an ordinary tensor: what the pack kept, and quantized tensors that are no linear layer's weight (an
    embedding table, a weight that the model merges or ties). A scale for a whole matrix is written once for
    each row, since few libraries read the other form.

    Args:
        pack_dir: A pack of a model directory.
        out: Must not exist.
        on_progress: Called after each tensor.

    Raises:
        OutputExistsError: `out` exists.
        NotAPackError: The directory is no pack, or one of a plain safetensors file.
        CorruptPackError: A byte is not as it was written.
        ModelMismatchError: The tensors are not those of the model that the config describes.
        SchemeError: The format cannot hold a linear layer's codes: other than 4 bits, scales that rows share or
            that follow columns, a short last group, float64 scales. Names the tensor.
    """
    pack_dir, out = Path(pack_dir), Path(out)
    if out.exists():
        raise OutputExistsError(f"{out}: expected a path that does not exist yet")
    found, reader = open_pack(pack_dir, check_bytes=True)
    if not (pack_dir / "config.json").exists():
        raise NotAPackError(f"{pack_dir}: expected a pack of a model, got one of a plain safetensors file")
    layers = linear_layers(pack_dir, reader.index)
    # Before any work, and before anything is written.
    forms = {name: _form(name, layers.entries[name]) for name in layers.packed}
    tensors = _tensors(reader, set(forms), on_progress)
    fields = _quantization_config(forms, layers.packed, layers.unpacked)
    config = {**json.loads((pack_dir / "config.json").read_text(encoding="utf-8")), "quantization_config": fields}
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{out.name}.", suffix=".tmp", dir=out.parent) as folder:
        draft = Path(folder) / out.name
        draft.mkdir()
        for name in (file.path for file in found.manifest.files):
            if name not in ("config.json", WEIGHTS):
                (draft / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(pack_dir / name, draft / name)
        text = json.dumps(config, indent=2, sort_keys=True, ensure_ascii=False)
        (draft / "config.json").write_text(f"{text}\n", encoding="utf-8")
        _save(tensors, draft / WEIGHTS)
        draft.rename(out)
    return out


def compressed_tensors_of(quantized: QuantizedTensor, name: str = "weight") -> dict[str, Tensor]:
    """The format's tensors of one weight, by the ends of their names.

    Raises:
        SchemeError: The format cannot hold it; names it.
    """
    num_rows, num_cols = quantized.codes.shape
    entry = Entry(
        name=name, dtype=quantized.scales.dtype, shape=quantized.shape, frame_bytes=(), scheme=quantized.scheme
    )
    strategy, size, symmetric = _form(name, entry)
    num_groups = num_cols // size if strategy == "group" and size else 1
    codes = quantized.codes + _HALF if symmetric else quantized.codes
    tensors = {
        "packed": _words(codes),
        # One scale for the whole matrix stands in every row.
        "scale": quantized.scales.reshape(-1, num_groups).expand(num_rows, num_groups).contiguous(),
        "shape": torch.tensor([num_rows, num_cols], dtype=torch.int64),
    }
    if quantized.zeros is not None:
        zeros = quantized.zeros.reshape(-1, num_groups).expand(num_rows, num_groups)
        tensors["zero_point"] = _words(zeros.T).T.contiguous()
    return tensors


def _form(name: str, entry: Entry) -> _Form:
    scheme = entry.scheme
    assert scheme is not None
    num_cols = entry.matrix[1]
    where = f"{name}: compressed-tensors"
    if scheme.bits != 4:
        raise SchemeError(f"{where}: expected 4 bits, got {scheme.bits}")
    if len(entry.shape) != 2 or entry.dtype == torch.float64:
        raise SchemeError(f"{where}: expected a matrix of at most 32 bits, got {entry.dtype} {list(entry.shape)}")
    if entry.num_groups == 1:
        return "channel", None, scheme.symmetric
    blocks = scheme.layout()
    if scheme.axis != "out" or len(blocks) != 1 or (not blocks[0].group_size and blocks[0].num_channels != 1):
        raise SchemeError(
            f"{where}: expected scales of groups, rows or the matrix, got {scheme.granularity} along axis {scheme.axis}"
        )
    size = blocks[0].group_size
    if not size or size >= num_cols:
        return "channel", None, scheme.symmetric
    if num_cols % size:
        raise SchemeError(f"{where}: expected columns in whole groups of {size}, got {num_cols} columns")
    return "group", size, scheme.symmetric


def _words(values: Tensor) -> Tensor:
    """Values 0..15 [R, C] -> int32 [R, ceil(C / 8)], a row's first in the lowest bits."""
    padded = torch.nn.functional.pad(values, (0, -values.shape[1] % _CODES_PER_WORD)).to(torch.int32)
    words = padded.reshape(values.shape[0], -1, _CODES_PER_WORD)
    shifts = torch.arange(0, 32, 32 // _CODES_PER_WORD, dtype=torch.int32)
    return (words << shifts).sum(-1, dtype=torch.int32)


def _tensors(reader: PackReader, packed: set[str], on_progress: OnProgress | None) -> dict[str, Tensor]:
    tensors: dict[str, Tensor] = {}
    names = reader.names
    for position, name in enumerate(names, start=1):
        if name in packed:
            quantized = reader.quantized(reader.index.aliases.get(name, name))
            parts = compressed_tensors_of(quantized, name)
            tensors.update({f"{name}_{part}": tensor for part, tensor in parts.items()})
        else:
            tensors[name] = reader.tensor(name)
        if on_progress is not None:
            on_progress(position, len(names), name)
    return tensors


def _quantization_config(forms: dict[str, _Form], packed: Mapping[str, str], unpacked: list[str]) -> dict[str, Any]:
    """The entry of config.json; `packed` gives each layer's weight its name in the model."""
    counts = Counter(forms.values()).most_common()
    groups: dict[str, Any] = {}
    for number, (form, _) in enumerate(counts):
        # The commonest form is every linear layer's unless it is named; names outrank classes.
        names = ["Linear"] if number == 0 else [_target(name, packed[name]) for name in forms if forms[name] == form]
        strategy, size, symmetric = form
        weights = {"num_bits": 4, "type": "int", "strategy": strategy, "group_size": size, "symmetric": symmetric}
        groups[f"group_{number}"] = {"targets": names, "weights": {**weights, "dynamic": False}, "format": FORMAT}
    return {
        "quant_method": "compressed-tensors",
        "format": FORMAT,
        "quantization_status": "compressed",
        "config_groups": groups,
        "ignore": unpacked,
    }


def _target(weight: str, layer: str) -> str:
    """Matches a layer as the checkpoint and as the model calls it: libraries differ in which they ask for."""
    names = sorted({weight.removesuffix(".weight"), layer})
    return f"re:^(?:{'|'.join(re.escape(name) for name in names)})$"


def _save(tensors: dict[str, Tensor], path: Path) -> None:
    try:
        save_file(tensors, path, metadata={"format": "pt"})
    except SafetensorError as error:
        raise OSError(f"{path}: cannot be written: {error}") from error
    # The library makes it readable for its owner only.
    path.chmod(0o644)
