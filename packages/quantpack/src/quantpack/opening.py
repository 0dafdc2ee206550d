"""Opens a pack: the artifact first, then its weights, each checked against the other."""

import json
from dataclasses import replace
from pathlib import Path

from quantpack.container.reading import PackReader
from quantpack.errors import CorruptPackError, NotAPackError, SchemeError
from quantpack.scheme import scheme_from_fields
from quantpack.source import METHOD, WEIGHTS
from quantpack.totals import totals
from quantpack.wire import quantized_model_from_proto
from vlmpress import artifact
from vlmpress.artifact import Artifact, ArtifactError, ArtifactFaultError


def open_pack(directory: Path, *, check_bytes: bool) -> tuple[Artifact, PackReader]:
    """The pack's manifest and weights.

    Args:
        directory: A pack.
        check_bytes: Compare every file with its SHA-256; otherwise the manifest alone is checked.

    Raises:
        NotAPackError: There is no artifact, or one of another kind.
        CorruptPackError: Names the first thing that is not as the manifest or the index says.
    """
    try:
        found = artifact.verify(directory) if check_bytes else artifact.read(directory)
    except ArtifactFaultError as error:
        # It may quote what the manifest says, line ends included.
        raise CorruptPackError(" ".join(str(error).splitlines())) from error
    except ArtifactError as error:
        raise NotAPackError(" ".join(str(error).splitlines())) from error
    if found.manifest.kind != "quantized_model":
        raise NotAPackError(f"{directory}: expected an artifact of kind quantized_model, got {found.manifest.kind}")
    weights = PackReader(directory / WEIGHTS)
    try:
        stated = quantized_model_from_proto(found.manifest.quantized_model)
    except SchemeError as error:
        raise CorruptPackError(f"{directory / 'manifest.json'}: {error}") from error
    found_totals = replace(totals(weights.index), recipe=stated.recipe)
    if stated != found_totals:
        raise CorruptPackError(f"{directory}: manifest says {stated!r:.300}, index says {found_totals!r:.300}")
    _check_config(directory / "config.json", weights)
    return found, weights


def _check_config(path: Path, weights: PackReader) -> None:
    if not path.exists():
        return  # a pack of a plain safetensors file
    try:
        fields = json.loads(path.read_text(encoding="utf-8"))["quantization_config"]
        method = fields["quant_method"]
        scheme = scheme_from_fields(fields, str(path))
    except SchemeError as error:
        raise CorruptPackError(str(error)) from error
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise CorruptPackError(f"{path}: expected a quantization_config, got {type(error).__name__}") from error
    if method != METHOD or scheme != weights.index.scheme:
        raise CorruptPackError(f"{path}: expected the scheme of the index, got {fields!r:.200}")
