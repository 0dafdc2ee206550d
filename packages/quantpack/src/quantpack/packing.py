"""Packs a model: quantizes its linear weights, keeps the rest, writes the artifact."""

import hashlib
import json
import math
import shutil
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from quantpack.affine import SCALE_DTYPES, QuantizedTensor, quantize_tensor
from quantpack.calibration.samples import Sample
from quantpack.container.planes import DTYPE_NAMES, as_bytes
from quantpack.container.writing import PackWriter
from quantpack.errors import CalibrationError, OutputExistsError, SourceError
from quantpack.progress import OnProgress
from quantpack.quantizing import Quantization, check_needs_no_calibration
from quantpack.recipe import Recipe, as_recipe
from quantpack.scheme import Scheme
from quantpack.selection import is_embedding, is_linear_weight
from quantpack.source import METHOD, WEIGHTS, Source, open_source, other_files, parents_of
from quantpack.totals import totals
from quantpack.wire import quantized_model_to_proto
from vlmpress import artifact
from vlmpress.artifact import Artifact

DISTRIBUTION = "vlmpress-quantpack"
RECORD = "quantization.json"


def pack(
    src: Path,
    out: Path,
    scheme: Scheme | Recipe,
    calibration: Iterable[Sample] | None = None,
    on_progress: OnProgress | None = None,
    parents: Sequence[tuple[str, str]] = (),
) -> Artifact:
    """Packs a model directory or a plain safetensors file into the artifact directory `out`.

    Of a model the weights of linear layers are quantized (`selection.is_linear_weight`), of a plain
    file every 2-D floating tensor. All else is kept bit for bit; equal tensors are stored once. One tensor,
    or with calibration one layer, is in memory at a time.

    Args:
        src: A Hugging Face model directory (sharded or not), or a safetensors file.
        out: Must not exist.
        scheme: How weights become codes, rounded to nearest; or a recipe.
        calibration: Keyword arguments of the model's forward, one dict for each sample or batch.
        on_progress: Called after each tensor.
        parents: (role, digest) of artifacts it is made from besides `src`, such as the calibration data.

    Raises:
        OutputExistsError: `out` exists.
        SourceError: `src` is nothing that can be packed.
        WeightError: A tensor holds NaN or infinity; names it.
        CalibrationError: The recipe needs calibration and there is none, or a sample does not fit; names it.
        vlmpress.artifact.ArtifactFaultError: `src` is an artifact with a changed byte.
    """
    src, out = Path(src), Path(out)
    _check_free(out)
    recipe = as_recipe(scheme)
    source = open_source(src)
    if calibration is None:
        check_needs_no_calibration(recipe)
    elif source.config is None:
        raise CalibrationError(f"{src}: expected a model directory to calibrate, got a plain safetensors file")
    with artifact.create(out) as draft:
        writer = PackWriter(recipe.default.scheme, draft.path)
        tensors = _Tensors(writer, sum(math.prod(shape) for shape in source.shapes.values()), on_progress)
        schemes = _schemes(source, recipe)
        changed: Mapping[str, Tensor] = {}
        if calibration is not None:
            # Imports transformers, which packing without calibration does not need.
            from quantpack.layerwise import quantize_layerwise

            linear = {name: each for name, each in schemes.items() if not is_embedding(name)}
            changed = quantize_layerwise(src, source, recipe, linear, calibration, tensors.add_codes, tensors.report)
        for name in sorted(source.shapes.keys() - writer.names):
            tensors.add(name, changed[name] if name in changed else _real(source, name), schemes.get(name))
        return _finish(
            draft,
            writer,
            recipe,
            config=source.config,
            others=source.others,
            parents=(*source.parents, *parents),
            record={},
            pictures={},
        )


def pack_model(
    model: nn.Module,
    quantization: Quantization,
    out: Path,
    *,
    like: Path | None = None,
    record: Mapping[str, Any] | None = None,
    pictures: Mapping[str, str] | None = None,
    on_progress: OnProgress | None = None,
    parents: Sequence[tuple[str, str]] = (),
) -> Artifact:
    """Packs a transformers model that `quantize` or `search_ecm` has changed, under its own names.

    Args:
        model: Its config, and every tensor without codes, are stored as they are.
        quantization: Codes.
        out: Must not exist.
        like: The directory it was loaded from: tokenizer, processor and templates are copied; an artifact
            becomes the pack's parent.
        record: Stored in quantization.json beside the recipe: what a search tried and chose.
        pictures: SVG texts by file name.
        on_progress: Called after each tensor.
        parents: (role, digest) of artifacts it is made from besides `like`.

    Raises:
        OutputExistsError: `out` exists.
        SourceError: The model has no config.
        vlmpress.artifact.ArtifactFaultError: `like` is an artifact with a changed byte.
    """
    out = Path(out)
    _check_free(out)
    config = getattr(model, "config", None)
    if config is None:
        raise SourceError(f"{type(model).__name__}: expected a transformers model with a config")
    fields = {**config.to_dict(), "architectures": [type(model).__name__]}
    fields.pop("quantization_config", None)
    with artifact.create(out) as draft:
        writer = PackWriter(quantization.recipe.default.scheme, draft.path)
        num_weights = sum(tensor.numel() for tensor in model.state_dict().values())
        tensors = _Tensors(writer, num_weights, on_progress)
        _add_state(model, quantization, writer, tensors)
        generation = getattr(model, "generation_config", None)
        if generation is not None:
            generation.to_json_file(draft.path / "generation_config.json")
        return _finish(
            draft,
            writer,
            quantization.recipe,
            config=fields,
            others={} if like is None else other_files(Path(like)),
            parents=(*(() if like is None else parents_of(Path(like))), *parents),
            record=record or {},
            pictures=pictures or {},
        )


class _Tensors:
    """Adds tensors to a pack, equal ones once, and counts."""

    def __init__(self, writer: PackWriter, total: int, on_progress: OnProgress | None) -> None:
        self._writer = writer
        self._total = total
        self._done = 0
        self._on_progress = on_progress
        self._first_names: dict[bytes, str] = {}

    def add_codes(self, name: str, quantized: QuantizedTensor) -> None:
        """A tensor that has its codes; `report` counts it."""
        self._writer.add_quantized(name, quantized)

    def add(self, name: str, tensor: Tensor, scheme: Scheme | None) -> None:
        """A tensor to round to nearest, where there is a scheme and it is a floating matrix, or to keep."""
        if scheme is not None and (tensor.dim() != 2 or tensor.numel() == 0 or tensor.dtype not in SCALE_DTYPES):
            scheme = None
        if tensor.dim() >= 2 and self._is_repeated(name, tensor, scheme):
            pass
        elif scheme is not None:
            self._writer.add_quantized(name, quantize_tensor(tensor, scheme, name=name))
        else:
            self._writer.add_kept(name, tensor)
        self.report(self._done + tensor.numel(), self._total, name)

    def report(self, done: int, _total: int, name: str) -> None:
        """Takes over another count of weights done."""
        self._done = done
        if self._on_progress is not None:
            self._on_progress(done, self._total, name)

    def _is_repeated(self, name: str, tensor: Tensor, scheme: Scheme | None) -> bool:
        """Tied weights, which some checkpoints repeat under each of their names."""
        digest = hashlib.sha256(f"{scheme} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(as_bytes(tensor).data)
        first_name = self._first_names.setdefault(digest.digest(), name)
        if first_name != name:
            self._writer.add_alias(name, first_name)
        return first_name != name


def _add_state(model: nn.Module, quantization: Quantization, writer: PackWriter, tensors: _Tensors) -> None:
    """Every tensor of a model, codes where there are any, tied ones once."""
    state = model.state_dict()
    places = dict(model.named_parameters(remove_duplicate=False))
    first_names = {id(param): name for name, param in reversed(places.items())}
    # The name that has the codes comes before the names tied to it.
    for name in sorted(state, key=lambda each: (each not in quantization.tensors, each)):
        first = first_names[id(places[name])] if name in places else name
        if name in quantization.tensors:
            tensors.add_codes(name, quantization.tensors[name])
        elif first != name and first in quantization.tensors:
            writer.add_alias(name, first)
        else:
            tensors.add(name, state[name], None)


def _check_free(out: Path) -> None:
    if out.exists():
        raise OutputExistsError(f"{out}: expected a path that does not exist yet")


def _real(source: Source, name: str) -> Tensor:
    tensor = source.read(name)
    if tensor.dtype not in DTYPE_NAMES:
        raise SourceError(f"{source.files[name]}: tensor {name}: expected a real dtype, got {tensor.dtype}")
    return tensor


def _schemes(source: Source, recipe: Recipe) -> dict[str, Scheme]:
    """How each tensor of a source is to be quantized; those not in it are kept."""
    schemes = {}
    for name, shape in source.shapes.items():
        is_table = recipe.embeddings == "int4" and is_embedding(name)
        wanted = len(shape) == 2 and (source.config is None or is_table or is_linear_weight(name, shape))
        scheme = recipe.scheme_of(name) if wanted else None
        if scheme is not None:
            schemes[name] = scheme
    return schemes


def _finish(
    draft: artifact.Draft,
    writer: PackWriter,
    recipe: Recipe,
    *,
    config: Mapping[str, Any] | None,
    others: Mapping[str, Path],
    parents: tuple[tuple[str, str], ...] = (),
    record: Mapping[str, Any],
    pictures: Mapping[str, str],
) -> Artifact:
    """Writes what stands beside the weights, the weights, and the manifest."""
    for name, path in others.items():
        target = draft.path / name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, target)
    if config is not None:
        entry = {"quant_method": METHOD, **recipe.default.scheme.as_fields()}
        _write_json(draft.path / "config.json", {**config, "quantization_config": entry})
    if record or recipe != as_recipe(recipe.default.scheme):
        _write_json(draft.path / RECORD, {"recipe": recipe.as_fields(), **record})
    for name, text in pictures.items():
        (draft.path / name).write_text(text, encoding="utf-8")
    writer.write(draft.path / WEIGHTS)
    return draft.commit(
        quantized_model_to_proto(replace(totals(writer.index), recipe=_stated(recipe))),
        producer=(DISTRIBUTION, version(DISTRIBUTION)),
        parents=parents,
    )


def _stated(recipe: Recipe) -> Recipe | None:
    """What the manifest says of a recipe: nothing where the scheme says it all; single weights are in the index."""
    short = replace(recipe, tensors={})
    return None if short == as_recipe(recipe.default.scheme) else short


def _write_json(path: Path, fields: Mapping[str, Any]) -> None:
    text = json.dumps(fields, indent=2, sort_keys=True, ensure_ascii=False)
    path.write_text(f"{text}\n", encoding="utf-8")
