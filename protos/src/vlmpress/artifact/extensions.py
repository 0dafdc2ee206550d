"""Finds the code that a model directory's config names, through entry points.

Packages never import each other; what one offers another at run time is an entry point:

- `vlmpress.models`: name = a Hugging Face model type; the module registers its Auto classes.
- `vlmpress.quantizers`: name = a quantization method; `load(directory) -> model`.
- `vlmpress.token_reducers`: name = a method; `attach(model, policy)` puts it into a model. From then on the model's
  call and `generate` take `max_visual_tokens`, a limit for each row (a ValueError when it cannot be held), and the
  handle that `attach` returned says in `last_num_visual_tokens` how many each image of the last call got.
- `vlmpress.visual_compressions`: name = who compresses; `load(model, directory)` makes the model compress visual tokens
  inside its decoder as the directory's `visual_compression.json` says.
"""

import json
from collections.abc import Callable
from functools import partial
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

from google.protobuf import json_format

from vlmpress.artifact.errors import ArtifactError, ExtensionMissingError
from vlmpress.tokenreduce.v1 import tokenreduce_pb2

POLICY_FILE = "reduction_policy.json"
COMPRESSION_FILE = "visual_compression.json"
COMPRESSION_WEIGHTS_FILE = "visual_compression.safetensors"


def import_model_code(directory: Path) -> None:
    """Imports the module that registers the directory's model type, where a distribution offers one.

    Raises:
        ArtifactError: The directory has no readable config.json.
        ExtensionMissingError: The module does not import.
    """
    _find("vlmpress.models", str(_config(directory).get("model_type", "")))


def quantized_loader(directory: Path) -> Callable[[], Any] | None:
    """A function that loads the directory as a runnable model, or None when its weights are not quantized.

    Raises:
        ArtifactError: The directory has no readable config.json.
        ExtensionMissingError: No installed distribution offers its quantization method.
    """
    quantization = _config(directory).get("quantization_config")
    if not isinstance(quantization, dict):
        return None
    name = str(quantization.get("quant_method", ""))
    load = _find("vlmpress.quantizers", name)
    if load is None:
        raise ExtensionMissingError(f"{directory}: expected an installed quantizer named {name!r}, found none")
    return partial(load, directory)


def reducer_attachment(directory: Path) -> Callable[[Any], Any] | None:
    """A function that attaches the directory's token reducer to a model, or None when it has no policy.

    Raises:
        ArtifactError: The policy file is not a ReductionPolicy as JSON.
        ExtensionMissingError: No installed distribution offers its method.
    """
    path = directory / POLICY_FILE
    if not path.exists():
        return None
    try:
        fields = _object(path)
        policy = json_format.ParseDict(fields, tokenreduce_pb2.ReductionPolicy())
    except (OSError, ValueError, RecursionError, json_format.ParseError) as error:
        raise ArtifactError(
            f"{path}: expected a reduction policy as JSON, got {' '.join(str(error).split())}"
        ) from error
    attach = _find("vlmpress.token_reducers", policy.method)
    if attach is None:
        raise ExtensionMissingError(f"{path}: expected an installed token reducer named {policy.method!r}, found none")
    return lambda model: attach(model, policy)


def compression_attachment(directory: Path) -> Callable[[Any], Any] | None:
    """A function that puts the compression a directory keeps in force on its model, or None when it keeps none.

    A model that was trained always compressed answers wrongly without.

    Raises:
        ExtensionMissingError: No installed distribution offers it.
    """
    path = directory / COMPRESSION_FILE
    if not path.exists():
        return None
    load = _find("vlmpress.visual_compressions", "stagetrain")
    if load is None:
        raise ExtensionMissingError(f"{path}: expected vlmpress-stagetrain installed, which compresses so, found none")
    return lambda model: load(model, directory)


def write_policy(directory: Path, policy: tokenreduce_pb2.ReductionPolicy) -> None:
    """Puts a policy beside a model's weights, so that whoever loads the directory attaches it."""
    fields = json_format.MessageToDict(policy, preserving_proto_field_name=True)
    (directory / POLICY_FILE).write_text(json.dumps(fields, sort_keys=True, indent=2) + "\n", encoding="utf-8")


def _config(directory: Path) -> dict[str, Any]:
    path = directory / "config.json"
    try:
        return _object(path)
    except (OSError, ValueError, RecursionError) as error:
        raise ArtifactError(f"{path}: expected a model's config.json, got {error}") from error


def _object(path: Path) -> dict[str, Any]:
    content = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(content, dict):
        raise ValueError(f"a JSON {type(content).__name__}")
    return content


def _find(group: str, name: str) -> Any:
    found = next(iter(entry_points(group=group, name=name)), None)
    if found is None:
        return None
    try:
        return found.load()
    except (ImportError, AttributeError) as error:
        raise ExtensionMissingError(f"{group} {name!r}: expected {found.value} to import, got {error}") from error
