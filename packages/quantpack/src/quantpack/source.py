"""What is packed: a Hugging Face model directory, or a plain safetensors file."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import Tensor

from quantpack.container.names import name_fault
from quantpack.errors import SourceError
from vlmpress import artifact

WEIGHTS = "model.safetensors"
# quant_method of a pack's config.json.
METHOD = "quantpack"
WEIGHTS_INDEX = "model.safetensors.index.json"
_NOT_COPIED = {"config.json", WEIGHTS_INDEX, "manifest.json", "manifest.sha256"}
_WEIGHT_SUFFIXES = {".safetensors", ".bin", ".pt", ".pth", ".h5", ".msgpack", ".onnx", ".gguf"}


@dataclass(frozen=True, kw_only=True, slots=True)
class Source:
    """Tensors by name, and what goes into the pack beside them.

    Attributes:
        files: The safetensors file of each tensor.
        shapes: The shape of each tensor.
        config: The model's config.json; None for a plain file.
        others: Files to copy, by their path relative to the directory.
        parents: (role, digest) of the artifact the tensors come from, if they do.
    """

    files: Mapping[str, Path]
    shapes: Mapping[str, tuple[int, ...]]
    config: Mapping[str, Any] | None
    others: Mapping[str, Path]
    parents: tuple[tuple[str, str], ...]

    def read(self, name: str) -> Tensor:
        """One tensor, mapped from its file and not copied; the others stay on disk."""
        with _open(self.files[name]) as file:
            return file.get_tensor(name)


def open_source(path: Path) -> Source:
    """Looks at a model directory or a safetensors file; reads headers only.

    Raises:
        SourceError: It is neither, its config or weights are unreadable, or it is quantized already.
        vlmpress.artifact.ArtifactFaultError: It is an artifact with a changed byte.
    """
    if path.is_file():
        shapes = _shapes(path)
        return Source(files=dict.fromkeys(shapes, path), shapes=shapes, config=None, others={}, parents=())
    if not path.is_dir():
        raise SourceError(f"{path}: expected a model directory or a safetensors file, found nothing there")
    config = _read_json(path / "config.json")
    if config.get("quantization_config") is not None:
        raise SourceError(f"{path / 'config.json'}: expected unquantized weights, got a quantization_config")
    files: dict[str, Path] = {}
    shapes = {}
    for file in _weight_files(path):
        found = _shapes(file)
        for name in found.keys() & files.keys():
            raise SourceError(f"{file}: tensor {name} is in {files[name].name} as well")
        files.update(dict.fromkeys(found, file))
        shapes.update(found)
    return Source(files=files, shapes=shapes, config=config, others=other_files(path), parents=parents_of(path))


def parents_of(directory: Path) -> tuple[tuple[str, str], ...]:
    """("model", digest) of a directory that is an artifact, every byte checked; nothing of one that is none."""
    if (directory / "manifest.json").exists() and (directory / "manifest.sha256").exists():
        return (("model", artifact.verify(directory).digest),)
    return ()


def _weight_files(directory: Path) -> list[Path]:
    if (directory / WEIGHTS).is_file():
        return [directory / WEIGHTS]
    index = directory / WEIGHTS_INDEX
    if not index.is_file():
        raise SourceError(f"{directory}: expected {WEIGHTS} or {WEIGHTS_INDEX}, found neither")
    weight_map = _read_json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not all(_is_file_name(name) for name in weight_map.values()):
        raise SourceError(f"{index}: expected weight_map to give each tensor's file in this directory")
    shards = [directory / name for name in sorted(set(weight_map.values()))]
    missing = weight_map.keys() - {name for shard in shards for name in _shapes(shard)}
    if missing:
        raise SourceError(f"{index}: tensor {min(missing)} is in none of the files it lists")
    return shards


def _is_file_name(name: object) -> bool:
    return isinstance(name, str) and Path(name).name == name


def other_files(directory: Path) -> dict[str, Path]:
    """What a pack of a model directory copies: all but weights, hidden files, the config and a manifest."""
    found = {}
    for path in sorted(directory.rglob("*")):
        relative = path.relative_to(directory)
        hidden = any(part.startswith(".") for part in relative.parts)
        if path.is_file() and not hidden and path.suffix not in _WEIGHT_SUFFIXES:
            found[relative.as_posix()] = path
    return {name: path for name, path in found.items() if name not in _NOT_COPIED}


def _shapes(path: Path) -> dict[str, tuple[int, ...]]:
    with _open(path) as file:
        shapes = {name: tuple(file.get_slice(name).get_shape()) for name in sorted(file.keys())}
    for name in shapes:
        fault = name_fault(name)
        if fault is not None:
            raise SourceError(f"{path}: tensor {name!r:.80}: {fault}")
    return shapes


def _open(path: Path) -> Any:
    try:
        return safe_open(path, framework="pt")
    except (SafetensorError, OSError) as error:
        raise SourceError(f"{path}: expected a safetensors file, got {error}") from error


def _read_json(path: Path) -> dict[str, Any]:
    try:
        fields = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise SourceError(f"{path}: expected a JSON object, got {error}") from error
    if not isinstance(fields, dict):
        raise SourceError(f"{path}: expected a JSON object, got {type(fields).__name__}")
    return fields
