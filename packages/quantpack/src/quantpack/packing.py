"""Packs a model: quantizes its linear weights, keeps the rest, writes the artifact."""

import hashlib
import json
import math
import shutil
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

from torch import Tensor

from quantpack.affine import SCALE_DTYPES, quantize_tensor
from quantpack.container.index import Index
from quantpack.container.nibbles import packed_bytes
from quantpack.container.planes import DTYPE_NAMES, as_bytes
from quantpack.container.writing import PackWriter
from quantpack.errors import OutputExistsError, SourceError
from quantpack.scheme import Scheme
from quantpack.selection import is_linear_weight
from quantpack.source import WEIGHTS, Source, open_source
from quantpack.totals import QuantizedModel
from quantpack.wire import quantized_model_to_proto
from vlmpress import artifact
from vlmpress.artifact import Artifact

METHOD = "quantpack"
DISTRIBUTION = "vlmpress-quantpack"

# (weights done, weights in all, name of the tensor just done)
OnProgress = Callable[[int, int, str], None]


def pack(src: Path, out: Path, scheme: Scheme, on_progress: OnProgress | None = None) -> Artifact:
    """Packs a model directory or a plain safetensors file into the artifact directory `out`.

    Of a model the weights of linear layers are quantized (`selection.is_linear_weight`), of a plain
    file every 2-D floating tensor. All else is kept bit for bit; equal tensors are stored once.

    Args:
        src: A Hugging Face model directory (sharded or not), or a safetensors file.
        out: Must not exist.
        scheme: How weights become codes.
        on_progress: Called after each tensor.

    Raises:
        OutputExistsError: `out` exists.
        SourceError: `src` is nothing that can be packed.
        WeightError: A tensor holds NaN or infinity; names it.
        vlmpress.artifact.ArtifactFaultError: `src` is an artifact with a changed byte.
    """
    src, out = Path(src), Path(out)
    if out.exists():
        raise OutputExistsError(f"{out}: expected a path that does not exist yet")
    source = open_source(src)
    with artifact.create(out) as draft:
        writer = PackWriter(scheme, draft.path)
        _encode(source, writer, on_progress)
        _copy_others(source, scheme, draft.path)
        writer.write(draft.path / WEIGHTS)
        return draft.commit(
            quantized_model_to_proto(totals(writer.index)),
            producer=(DISTRIBUTION, version(DISTRIBUTION)),
            parents=source.parents,
        )


def totals(index: Index) -> QuantizedModel:
    """What the manifest says of a pack, from its index."""
    return QuantizedModel(
        scheme=index.scheme,
        num_codes=sum(entry.num_weights for entry in index.quantized),
        code_bytes_packed=sum(packed_bytes(entry.num_weights) for entry in index.quantized),
        code_bytes_compressed=sum(sum(entry.frame_bytes) for entry in index.quantized),
    )


def _encode(source: Source, writer: PackWriter, on_progress: OnProgress | None) -> None:
    first_names: dict[bytes, str] = {}
    total = sum(math.prod(shape) for shape in source.shapes.values())
    done = 0
    for name in sorted(source.shapes):
        tensor = source.read(name)
        if tensor.dtype not in DTYPE_NAMES:
            raise SourceError(f"{source.files[name]}: tensor {name}: expected a real dtype, got {tensor.dtype}")
        _add(writer, name, tensor, first_names, is_model=source.config is not None)
        done += tensor.numel()
        if on_progress is not None:
            on_progress(done, total, name)


def _add(writer: PackWriter, name: str, tensor: Tensor, first_names: dict[bytes, str], *, is_model: bool) -> None:
    quantized = tensor.dim() == 2 and tensor.numel() > 0 and tensor.dtype in SCALE_DTYPES
    if is_model:
        quantized = quantized and is_linear_weight(name, tuple(tensor.shape))
    if tensor.dim() >= 2:
        # Tied weights, which some checkpoints repeat under each of their names.
        digest = hashlib.sha256(f"{quantized} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(as_bytes(tensor).data)
        first_name = first_names.setdefault(digest.digest(), name)
        if first_name != name:
            writer.add_alias(name, first_name)
            return
    if quantized:
        writer.add_quantized(name, quantize_tensor(tensor, writer.scheme, name=name))
    else:
        writer.add_kept(name, tensor)


def _copy_others(source: Source, scheme: Scheme, folder: Path) -> None:
    for name, path in source.others.items():
        target = folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, target)
    if source.config is not None:
        config = {**source.config, "quantization_config": {"quant_method": METHOD, **scheme.as_fields()}}
        text = json.dumps(config, indent=2, sort_keys=True, ensure_ascii=False)
        (folder / "config.json").write_text(f"{text}\n", encoding="utf-8")
