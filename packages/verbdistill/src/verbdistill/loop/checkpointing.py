"""What is kept of a phase, so that a killed run goes on where it was.

<dir>/run.json            the phase's fingerprint
<dir>/step-00000100/      the newest checkpoint inside the phase: state.json and *.safetensors
<dir>/finished/           what the phase left, of the same form; then no other is needed
"""

import dataclasses
import hashlib
import json
import re
import shutil
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from verbdistill.config import DistillConfig
from verbdistill.errors import CheckpointError
from verbdistill.loop.ranks import from_first, rank
from verbdistill.teachers.fingerprints import fingerprint_of
from vlmpress.artifact import whole_directory, whole_file

RUN, STATE, FINISHED = "run.json", "state.json", "finished"
_STEP = re.compile(r"step-(\d{8,})")
_FREE = ("save_steps",)
"""Fields that say how a run is kept, not what it does."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Saved:
    """A checkpoint.

    Attributes:
        where: Its folder.
        tensors: By file name, by name.
        state: What JSON holds.
        done: Optimizer steps of the phase done before it.
    """

    where: Path
    tensors: dict[str, dict[str, Tensor]]
    state: dict[str, Any]
    done: int


class Checkpoints:
    """Checkpoints of one phase in a folder of its own; without a folder nothing is kept.

    Of several processes the first one writes and chooses, all of them read.
    """

    def __init__(self, folder: Path | None, fingerprint: str) -> None:
        """Opens or begins a phase.

        Raises:
            CheckpointError: The folder holds another run's, or something unreadable.
        """
        self._folder = folder
        if folder is not None:
            from_first(lambda: _open(folder, fingerprint))

    def finished(self) -> Saved | None:
        """What the phase left, or None while it has not ended.

        Raises:
            CheckpointError: A file is damaged.
        """
        folder = self._folder
        there = folder is not None and from_first((folder / FINISHED).is_dir)
        return _read(folder / FINISHED) if folder is not None and there else None

    def last_step(self) -> Saved | None:
        """The newest checkpoint inside the phase, or None.

        Raises:
            CheckpointError: A file is damaged.
        """
        folder = self._folder
        newest = None if folder is None else from_first(lambda: max(_steps(folder), default=None))
        return None if folder is None or newest is None else _read(_path(folder, newest))

    def save_step(self, done: int, tensors: Mapping[str, Mapping[str, Tensor]], state: Mapping[str, Any]) -> None:
        """Keeps a checkpoint after `done` steps instead of the one before it."""
        folder = self._folder
        if folder is None or rank():
            return
        before = _steps(folder)
        _write(_path(folder, done), tensors, {**state, "done": done})
        for each in before:
            if each != done:
                shutil.rmtree(_path(folder, each), ignore_errors=True)

    def finish(self, tensors: Mapping[str, Mapping[str, Tensor]], state: Mapping[str, Any]) -> None:
        """Keeps what the phase left instead of its checkpoints."""
        folder = self._folder
        if folder is None or rank():
            return
        _write(folder / FINISHED, tensors, {**state, "done": 0})
        for each in _steps(folder):
            shutil.rmtree(_path(folder, each), ignore_errors=True)


def fingerprint(phase: str, config: DistillConfig, models: Mapping[str, nn.Module], **others: object) -> str:
    """64 hex digits of a phase, its configuration, the models it begins with and other JSON values."""
    settings = {name: value for name, value in dataclasses.asdict(config).items() if name not in _FREE}
    values = {"phase": phase, "config": settings, "models": fingerprint_of(**models), **others}
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()


def owned_parameters(model: nn.Module) -> dict[str, Tensor]:
    """Parameters by name, tied ones once."""
    return {name: parameter.detach() for name, parameter in model.named_parameters()}


@torch.no_grad()
def restore_parameters(wanted: Mapping[str, Tensor], values: Mapping[str, Tensor], where: str) -> None:
    """Copies values into parameters of the same names.

    Raises:
        CheckpointError: Names or shapes differ.
    """
    if wanted.keys() != values.keys():
        name = sorted(wanted.keys() ^ values.keys())[0]
        raise CheckpointError(f"{where}: expected the same parameters as the model's, got a difference at {name}")
    for name, parameter in wanted.items():
        if parameter.shape != values[name].shape:
            raise CheckpointError(
                f"{where}: {name}: expected shape {list(parameter.shape)}, got {list(values[name].shape)}"
            )
        parameter.copy_(values[name])


def _open(folder: Path, fingerprint: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for left in folder.glob(".*.tmp"):
        if left.is_dir():
            shutil.rmtree(left, ignore_errors=True)
        else:
            left.unlink(missing_ok=True)
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


def _path(folder: Path, done: int) -> Path:
    return folder / f"step-{done:08d}"


def _steps(folder: Path) -> list[int]:
    return [int(match[1]) for path in folder.iterdir() if (match := _STEP.fullmatch(path.name))]


def _write(target: Path, tensors: Mapping[str, Mapping[str, Tensor]], state: Mapping[str, Any]) -> None:
    """The folder appears whole or not at all."""
    with whole_directory(target) as folder:
        sums = {}
        for name, values in tensors.items():
            path = folder / f"{name}.safetensors"
            save_file({key: value.detach().contiguous() for key, value in values.items()}, path)
            sums[path.name] = _crc32(path)
        (folder / STATE).write_text(json.dumps({**state, "crc32": sums}), encoding="utf-8")


def _read(folder: Path) -> Saved:
    state = _read_json(folder / STATE)
    sums = state.get("crc32")
    if not isinstance(sums, dict) or type(state.get("done")) is not int:
        raise CheckpointError(f"{folder / STATE}: expected the state of a checkpoint, got something else")
    tensors = {}
    for name, expected in sums.items():
        path = folder / name
        try:
            if _crc32(path) != expected:
                raise CheckpointError(f"{path}: expected CRC-32 {expected}, got {_crc32(path)}")
            tensors[path.stem] = load_file(path)
        except (OSError, SafetensorError) as error:
            raise CheckpointError(f"{path}: expected a readable safetensors file, got {error}") from error
    return Saved(where=folder, tensors=tensors, state=state, done=state["done"])


def _crc32(path: Path) -> int:
    value = 0
    with path.open("rb") as file:
        while chunk := file.read(1 << 22):
            value = zlib.crc32(chunk, value)
    return value


def _read_json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path}: expected readable JSON, got {error}") from error
    if not isinstance(value, dict):
        raise CheckpointError(f"{path}: expected a JSON object, got {type(value).__name__}")
    return value
