"""Checkpoints of a run: safetensors and JSON, there whole or not at all."""

import json
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from stagetrain.errors import CheckpointError

MODEL, OPTIMIZER, RUN = "model.safetensors", "optimizer.safetensors", "run.json"
_NAME = re.compile(r"checkpoint-(\d+)")


def newest_checkpoint(folder: Path) -> tuple[int, Path] | None:
    """Step and path of the newest checkpoint; a name without a suffix was renamed into place whole."""
    found = [(int(match[1]), path) for path in folder.glob("checkpoint-*") if (match := _NAME.fullmatch(path.name))]
    return max(found, default=None)


def write_checkpoint(folder: Path, step: int, fill: Callable[[Path], None]) -> None:
    """Fills a temporary folder, flushes it to disk, renames it to checkpoint-<step>, then removes older ones."""
    folder.mkdir(parents=True, exist_ok=True)
    for left_over in folder.glob(".checkpoint-*.tmp"):
        shutil.rmtree(left_over, ignore_errors=True)
    draft = Path(tempfile.mkdtemp(prefix=f".checkpoint-{step}.", suffix=".tmp", dir=folder))
    target = folder / f"checkpoint-{step}"
    try:
        fill(draft)
        for path in (*draft.iterdir(), draft):
            _flush(path)
        if not target.exists():
            draft.rename(target)
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    _flush(folder)
    for path in folder.glob("checkpoint-*"):
        if path != target and _NAME.fullmatch(path.name):
            shutil.rmtree(path, ignore_errors=True)


def save_tensors(folder: Path, model: torch.nn.Module, optimizer: Any) -> None:
    """Writes every parameter and buffer once (tied ones too), and the optimizer's state.

    Raises:
        CheckpointError: A file cannot be written.
    """
    _write(folder / MODEL, _model_tensors(model))
    state = optimizer.state_dict()["state"]
    flat = {f"{index}.{name}": value for index, slots in state.items() for name, value in slots.items()}
    _write(folder / OPTIMIZER, flat)


def load_model(folder: Path, model: torch.nn.Module) -> None:
    """Copies a checkpoint's values into the model.

    Raises:
        CheckpointError: The file is damaged or of another model.
    """
    saved, own = _read(folder / MODEL), _model_tensors(model)
    if {name: tensor.shape for name, tensor in saved.items()} != {name: tensor.shape for name, tensor in own.items()}:
        raise CheckpointError(f"{folder / MODEL}: expected the {len(own)} tensors of this model, got {len(saved)}")
    with torch.no_grad():
        for name, tensor in own.items():
            tensor.copy_(saved[name])


def load_optimizer(folder: Path, optimizer: Any) -> None:
    """Restores the optimizer's state.

    Raises:
        CheckpointError: The file is damaged.
    """
    state: dict[int, dict[str, torch.Tensor]] = {}
    for key, value in _read(folder / OPTIMIZER).items():
        index, name = key.split(".", 1)
        state.setdefault(int(index), {})[name] = value
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})


def save_run(folder: Path, run: Mapping[str, Any]) -> None:
    """Writes what identifies the run and what it has measured."""
    (folder / RUN).write_text(json.dumps(run, sort_keys=True, indent=1) + "\n", encoding="utf-8")


def load_run(folder: Path) -> dict[str, Any]:
    """Reads what `save_run` wrote.

    Raises:
        CheckpointError: The file is missing or damaged.
    """
    try:
        run = json.loads((folder / RUN).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{folder / RUN}: expected a JSON object, got {error}") from error
    if not isinstance(run, dict):
        raise CheckpointError(f"{folder / RUN}: expected a JSON object, got {type(run).__name__}")
    return run


def _model_tensors(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {**{name: value.data for name, value in model.named_parameters()}, **dict(model.named_buffers())}


def _write(path: Path, tensors: dict[str, torch.Tensor]) -> None:
    try:
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path)
    except SafetensorError as error:
        raise CheckpointError(f"{path}: expected to write {len(tensors)} tensors, got {error}") from error


def _read(path: Path) -> dict[str, torch.Tensor]:
    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{path}: expected a safetensors file, got {error}") from error


def _flush(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
