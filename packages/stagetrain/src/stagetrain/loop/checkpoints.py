"""Checkpoints of a run: what Trainer writes and run.json, there whole or not at all."""

import json
import re
import shutil
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from transformers.utils import logging

from stagetrain.errors import CheckpointError
from vlmpress.artifact import flush, flush_tree

RUN = "run.json"
_DRAFT = ".checkpoint-draft"
_NAME = re.compile(r"checkpoint-(\d+)")
_CHUNK_BYTES = 1 << 22


def step_of(checkpoint: Path) -> int:
    """Optimizer step that a checkpoint's name says."""
    match = _NAME.fullmatch(checkpoint.name)
    if match is None:
        raise CheckpointError(f"{checkpoint}: expected a folder named checkpoint-STEP")
    return int(match[1])


def list_checkpoints(folder: Path) -> list[Path]:
    """Checkpoints in a folder, newest first; a name without a dot was renamed into place whole."""
    return sorted((path for path in folder.glob("checkpoint-*") if _NAME.fullmatch(path.name)), key=step_of)[::-1]


def newest_whole(folder: Path) -> Path | None:
    """The newest checkpoint that `verify` accepts; None where there is no checkpoint.

    Raises:
        CheckpointError: There are checkpoints, and all of them are damaged.
    """
    first: CheckpointError | None = None
    for path in list_checkpoints(folder):
        try:
            verify(path)
            return path
        except CheckpointError as error:
            logging.get_logger(__name__).warning(f"left out: {error}")
            first = first or error
    if first is not None:
        raise first
    return None


def draft_of(folder: Path) -> Path:
    """The hidden folder that a checkpoint of `folder` is written into first."""
    return folder / _DRAFT


def begin_draft(folder: Path) -> None:
    """Makes the hidden folder, empty."""
    shutil.rmtree(draft_of(folder), ignore_errors=True)
    draft_of(folder).mkdir(parents=True)


def drop_draft(folder: Path) -> None:
    """Removes the hidden folder."""
    shutil.rmtree(draft_of(folder), ignore_errors=True)


def publish(draft: Path, target: Path, run: Mapping[str, Any]) -> None:
    """Adds run.json with every file's size and CRC-32, flushes all to disk, and renames the draft into place."""
    files = {path.relative_to(draft).as_posix(): path for path in sorted(draft.rglob("*")) if path.is_file()}
    sums = {name: [path.stat().st_size, _crc32(path)] for name, path in files.items()}
    (draft / RUN).write_text(json.dumps({**run, "files": sums}, sort_keys=True) + "\n", encoding="utf-8")
    flush_tree(draft)
    if target.exists():
        shutil.rmtree(target)
    draft.rename(target)
    flush(target.parent)


def read_run(checkpoint: Path) -> dict[str, Any]:
    """What `publish` was given.

    Raises:
        CheckpointError: run.json is missing or damaged.
    """
    try:
        run = json.loads((checkpoint / RUN).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{checkpoint / RUN}: expected a JSON object, got {error}") from error
    if not isinstance(run, dict) or not isinstance(run.get("files"), dict):
        raise CheckpointError(f"{checkpoint / RUN}: expected a JSON object with files, got {type(run).__name__}")
    return run


def verify(checkpoint: Path) -> None:
    """Compares every file with its size and CRC-32.

    Raises:
        CheckpointError: Names the file, what was expected and what is there.
    """
    for name, expected in read_run(checkpoint)["files"].items():
        path = checkpoint / name
        size = path.stat().st_size if path.is_file() else None
        got = [size, _crc32(path)] if size == expected[0] else [size]
        if got != expected:
            what = "no file" if size is None else f"{size} bytes" + (f" of CRC-32 {got[1]}" if len(got) > 1 else "")
            raise CheckpointError(f"{path}: expected {expected[0]} bytes of CRC-32 {expected[1]}, got {what}")


def check_identity(checkpoint: Path, expected: Mapping[str, Any]) -> None:
    """Refuses a checkpoint of another run.

    Raises:
        CheckpointError: Names the first field that differs, what was expected and what the checkpoint says.
    """
    saved = read_run(checkpoint).get("identity", {})
    wanted = json.loads(json.dumps(expected))
    for name in sorted({*wanted, *saved}):
        if saved.get(name) != wanted.get(name):
            raise CheckpointError(f"{checkpoint}: {name}: expected {wanted.get(name)!r}, got {saved.get(name)!r}")


def load_model(checkpoint: Path, model: Any) -> None:
    """Copies a checkpoint's weights into the model, through `from_pretrained` of its class.

    Trainer's own loading matches names as they are in the file, which for Llava and others differ from the model's.

    Raises:
        CheckpointError: The files are damaged or of another model.
    """
    own = model.state_dict()
    # Every 16-bit value is one of float32 too, so this is exact whatever mixture the model holds.
    dtype = torch.float64 if any(tensor.dtype == torch.float64 for tensor in own.values()) else torch.float32
    try:
        with quiet():
            fresh, report = type(model).from_pretrained(checkpoint, dtype=dtype, output_loading_info=True)
        if report["missing_keys"]:
            raise ValueError(f"no tensor {min(report['missing_keys'])}")
        loaded = fresh.state_dict()
        for name in own.keys() - loaded.keys():
            # A compressor with parameters is a part of this model that its class does not know.
            loaded[name] = _raw_tensor(checkpoint, name)
        with torch.no_grad():
            for name, tensor in own.items():
                if tensor.shape != loaded[name].shape:
                    raise ValueError(f"{name}: shape {tuple(loaded[name].shape)} for {tuple(tensor.shape)}")
                tensor.copy_(loaded[name])
    except (OSError, ValueError, RuntimeError, KeyError, SafetensorError) as error:
        raise CheckpointError(f"{checkpoint}: expected weights of {type(model).__name__}, got {error}") from error


def _raw_tensor(checkpoint: Path, name: str) -> torch.Tensor:
    for path in sorted(checkpoint.glob("model*.safetensors")):
        with safe_open(path, framework="pt") as file:
            if name in file.keys():  # noqa: SIM118  # not a mapping
                tensor: torch.Tensor = file.get_tensor(name)
                return tensor
    raise ValueError(f"no tensor {name}")


@contextmanager
def quiet() -> Iterator[None]:
    """No bars and no warnings of loading and saving that are part of another job."""
    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()


def _crc32(path: Path) -> int:
    value = 0
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK_BYTES):
            value = zlib.crc32(chunk, value)
    return value
