"""The compression that a model was trained to keep, beside the model in its directory.

`visual_compression.json` holds the setting and the seed; `visual_compression.safetensors` the weights of a
compressor that has some. A model directory without the first is one of a model without compression.
"""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from stagetrain.attaching.attachment import MODULE_NAME, Attachment, attach
from stagetrain.errors import CompressionError, ScheduleError, UnknownCompressorError
from stagetrain.schedules.setting import CompressionSetting
from vlmpress.artifact import COMPRESSION_FILE, COMPRESSION_WEIGHTS_FILE

_VERSION = 1
_FIELDS = {"format_version": int, "layer": int, "stride": int, "compressor": str, "seed": int}


def save_compression(directory: Path, attachment: Attachment) -> None:
    """Writes the setting in force, and the weights of a learned compressor, into an existing directory.

    Raises:
        CompressionError: No setting is in force, or a file cannot be written.
    """
    setting = attachment.setting
    if setting is None:
        raise CompressionError(f"{directory / COMPRESSION_FILE}: expected a compression in force to save, got none")
    module = attachment.module
    if attachment.compressor is not None and attachment.compressor.is_learned and module is not None:
        tensors = {name: value.detach().contiguous() for name, value in module.state_dict().items()}
        draft = directory / f".{COMPRESSION_WEIGHTS_FILE}.tmp"
        try:
            save_file(tensors, draft)
        except SafetensorError as error:
            raise CompressionError(
                f"{directory / COMPRESSION_WEIGHTS_FILE}: expected to write {len(tensors)} tensors, got {error}"
            ) from error
        draft.replace(directory / COMPRESSION_WEIGHTS_FILE)
    else:
        (directory / COMPRESSION_WEIGHTS_FILE).unlink(missing_ok=True)
    saved = {"format_version": _VERSION, **asdict(setting), "seed": attachment.seed}
    draft = directory / f".{COMPRESSION_FILE}.tmp"
    draft.write_text(json.dumps(saved, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    draft.replace(directory / COMPRESSION_FILE)


def plain_state(model: Any) -> dict[str, Any]:
    """A model's weights without those of a learned compressor, for `save_pretrained(..., state_dict=...)`.

    They have a file of their own, and whoever loads the model would be told that they are unexpected.
    """
    return {name: value for name, value in model.state_dict().items() if not name.startswith(f"{MODULE_NAME}.")}


def saved_setting(directory: Path) -> CompressionSetting | None:
    """The setting saved in a model's directory; None where there is none.

    Raises:
        CompressionError: The file is damaged.
    """
    path = directory / COMPRESSION_FILE
    return _read_setting(path)[0] if path.exists() else None


def load_compression(model: Any, directory: Path) -> Attachment | None:
    """Puts the compression saved in a model's directory in force on that model; None where there is none.

    Raises:
        CompressionError: A file is damaged, or of another model.
        PoolingUnsupportedError: The model is of no known family.
    """
    path = directory / COMPRESSION_FILE
    if not path.exists():
        return None
    setting, seed = _read_setting(path)
    attachment = attach(model, seed)
    try:
        attachment.set(setting)
    except ScheduleError as error:
        raise CompressionError(f"{path}: {error}") from error
    try:
        _load_weights(directory / COMPRESSION_WEIGHTS_FILE, attachment)
    except CompressionError:
        attachment.detach()
        raise
    return attachment


def _read_setting(path: Path) -> tuple[CompressionSetting, int]:
    try:
        saved = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CompressionError(f"{path}: expected a JSON object, got {error}") from error
    if not isinstance(saved, dict) or set(saved) != set(_FIELDS):
        got = ", ".join(map(str, saved)) if isinstance(saved, dict) else type(saved).__name__
        raise CompressionError(f"{path}: expected an object of {', '.join(_FIELDS)}, got {got}")
    for name, kind in _FIELDS.items():
        if type(saved[name]) is not kind:
            raise CompressionError(f"{path}: {name}: expected {kind.__name__}, got {saved[name]!r}")
    if saved["format_version"] != _VERSION:
        raise CompressionError(f"{path}: format_version: expected {_VERSION}, got {saved['format_version']}")
    try:
        return CompressionSetting(**{name: saved[name] for name in ("layer", "stride", "compressor")}), saved["seed"]
    except (ScheduleError, UnknownCompressorError) as error:
        raise CompressionError(f"{path}: {error}") from error


def _load_weights(path: Path, attachment: Attachment) -> None:
    module = attachment.module
    if attachment.compressor is None or not attachment.compressor.is_learned or module is None:
        return
    try:
        saved = load_file(path)
    except (OSError, SafetensorError) as error:
        raise CompressionError(f"{path}: expected a safetensors file, got {error}") from error
    own = module.state_dict()
    for name in sorted(saved.keys() | own.keys()):
        shapes = [list(tensors[name].shape) if name in tensors else None for tensors in (own, saved)]
        if shapes[0] != shapes[1]:
            raise CompressionError(f"{path}: {name}: expected shape {shapes[0]}, got {shapes[1]}")
    module.load_state_dict(saved)
