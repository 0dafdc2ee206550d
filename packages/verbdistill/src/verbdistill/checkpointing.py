"""What is kept of each finished phase, so that a killed run goes on with the phase it was in.

<dir>/run.json            the run's fingerprint
<dir>/<phase>/state.json  losses and matches
<dir>/<phase>/*.safetensors
"""

import dataclasses
import hashlib
import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from verbdistill.config import DistillConfig
from verbdistill.errors import CheckpointError
from vlmpress.artifact import whole_directory, whole_file

RUN = "run.json"
STATE = "state.json"
_SAMPLED = 1024


class Checkpoints:
    """The finished phases of one run in one folder; without a folder nothing is kept."""

    def __init__(self, folder: Path | None, fingerprint: str) -> None:
        """Opens or begins a run.

        Raises:
            CheckpointError: The folder holds another run, or something unreadable.
        """
        self._folder = folder
        if folder is None:
            return
        folder.mkdir(parents=True, exist_ok=True)
        for left in folder.glob(".*.tmp"):
            shutil.rmtree(left, ignore_errors=True)
        if not (folder / RUN).exists():
            with whole_file(folder / RUN) as file:
                file.write(json.dumps({"fingerprint": fingerprint}).encode())
            return
        found = _read_json(folder / RUN).get("fingerprint")
        if found != fingerprint:
            raise CheckpointError(
                f"{folder}: expected checkpoints of this run (fingerprint {fingerprint[:12]}), "
                f"got another configuration's or other models' ({str(found)[:12]})"
            )

    def load(self, phase: str) -> tuple[dict[str, dict[str, Tensor]], dict[str, Any]] | None:
        """(tensors by file name, state) of a finished phase, else None.

        Raises:
            CheckpointError: A file cannot be read.
        """
        if self._folder is None or not (self._folder / phase).is_dir():
            return None
        folder = self._folder / phase
        try:
            tensors = {path.stem: load_file(path) for path in sorted(folder.glob("*.safetensors"))}
        except (OSError, SafetensorError) as error:
            raise CheckpointError(f"{folder}: expected readable safetensors files, got {error}") from error
        return tensors, _read_json(folder / STATE)

    def save(self, phase: str, tensors: Mapping[str, Mapping[str, Tensor]], state: Mapping[str, Any]) -> None:
        """Keeps a finished phase: its folder appears whole or not at all."""
        if self._folder is None:
            return
        with whole_directory(self._folder / phase) as folder:
            for name, values in tensors.items():
                save_file(
                    {key: value.detach().contiguous() for key, value in values.items()}, folder / f"{name}.safetensors"
                )
            (folder / STATE).write_text(json.dumps(state), encoding="utf-8")


def fingerprint(config: DistillConfig, models: Mapping[str, nn.Module]) -> str:
    """64 hex digits of the configuration and of every parameter's name, shape and first 1,024 values.

    A sample, because hashing all of a 72B teacher would take minutes.
    """
    digest = hashlib.sha256(json.dumps(dataclasses.asdict(config), sort_keys=True).encode())
    for role, model in models.items():
        for name, parameter in model.named_parameters():
            digest.update(f"{role} {name} {list(parameter.shape)}".encode())
            sample = parameter.detach().flatten()[:_SAMPLED].float().cpu()
            digest.update(sample.numpy().tobytes())
    return digest.hexdigest()


def owned_parameters(model: nn.Module) -> dict[str, Tensor]:
    """Parameters by name, tied ones once."""
    return {name: parameter.detach() for name, parameter in model.named_parameters()}


@torch.no_grad()
def restore_parameters(model: nn.Module, values: Mapping[str, Tensor], where: str) -> None:
    """Copies parameters into a model, tied ones once.

    Raises:
        CheckpointError: Names or shapes differ.
    """
    wanted = dict(model.named_parameters())
    if wanted.keys() != values.keys():
        name = sorted(wanted.keys() ^ values.keys())[0]
        raise CheckpointError(f"{where}: expected the same parameters as the model's, got a difference at {name}")
    for name, parameter in wanted.items():
        if parameter.shape != values[name].shape:
            raise CheckpointError(
                f"{where}: {name}: expected shape {list(parameter.shape)}, got {list(values[name].shape)}"
            )
        parameter.copy_(values[name])


def _read_json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path}: expected readable JSON, got {error}") from error
    if not isinstance(value, dict):
        raise CheckpointError(f"{path}: expected a JSON object, got {type(value).__name__}")
    return value
