"""Verbalizers as an artifact of their own, apart from any model."""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from verbdistill.errors import TargetError, VerbalizersError
from verbdistill.models.parts import hidden_size
from verbdistill.verbalizers.verbalizers import Verbalizers
from verbdistill.verbalizers.wire import VerbalizersSpec, verbalizers_from_proto, verbalizers_to_proto
from vlmpress.artifact import Artifact, create, verify

WEIGHTS = "verbalizers.safetensors"
CONFIG = "config.json"
_DISTRIBUTION = "vlmpress-verbdistill"


def save_verbalizers(verbalizers: Verbalizers, path: Path, parents: Sequence[tuple[str, str]] = ()) -> Artifact:
    """Writes bodies as an artifact of kind verbalizers; norm and head stay the backbone's.

    Args:
        verbalizers: What to write.
        path: A directory that does not exist yet.
        parents: (role, digest), for example of the backbone.

    Raises:
        ArtifactError: The directory exists.
    """
    spec = VerbalizersSpec(
        layers=verbalizers.layers,
        hidden_size=verbalizers.hidden_size,
        kind=verbalizers.kind,
        depth=verbalizers.depth,
        out_size=verbalizers.out_size,
        is_bare=verbalizers.is_bare,
    )
    with create(path) as draft:
        save_file({name: value.contiguous() for name, value in verbalizers.state_dict().items()}, draft.path / WEIGHTS)
        text = json.dumps(dataclasses.asdict(spec), indent=2, sort_keys=True) + "\n"
        (draft.path / CONFIG).write_text(text, encoding="utf-8")
        return draft.commit(
            verbalizers_to_proto(spec), producer=(_DISTRIBUTION, version(_DISTRIBUTION)), parents=parents
        )


def load_verbalizers(path: Path, model: nn.Module) -> Verbalizers:
    """Reads verbalizers beside the model they were trained with, every byte checked; in the type they were kept in.

    Raises:
        ArtifactError: No artifact is there; ArtifactFaultError if its bytes were changed.
        VerbalizersError: It is of another kind, or does not fit the model.
    """
    artifact = verify(path)
    if artifact.manifest.kind != "verbalizers":
        raise VerbalizersError(f"{path}: expected an artifact of kind verbalizers, got {artifact.manifest.kind}")
    spec = verbalizers_from_proto(artifact.manifest.verbalizers)
    if hidden_size(model) != spec.hidden_size:
        raise VerbalizersError(
            f"{path}: expected verbalizers of hidden size {hidden_size(model)}, got {spec.hidden_size}"
        )
    try:
        weights = load_file(path / WEIGHTS)
        verbalizers = Verbalizers(
            model,
            spec.layers,
            spec.kind,
            spec.depth,
            # What is drawn is overwritten; the caller's random numbers go on as if nothing had been.
            torch.Generator(),
            out_size=spec.out_size,
            is_bare=spec.is_bare,
            dtype=next(iter(weights.values())).dtype if weights else None,
        )
        _fill(verbalizers, weights)
    except (TargetError, VerbalizersError, OSError, SafetensorError) as error:
        raise VerbalizersError(f"{path}: {error}") from error
    return verbalizers


@torch.no_grad()
def _fill(verbalizers: Verbalizers, weights: Mapping[str, Tensor]) -> None:
    wanted = verbalizers.state_dict()
    for name in sorted(wanted.keys() | weights.keys()):
        sizes = [list(part[name].shape) if name in part else None for part in (wanted, weights)]
        if sizes[0] != sizes[1]:
            raise VerbalizersError(f"{WEIGHTS}: {name}: expected shape {sizes[0]}, got {sizes[1]}")
        wanted[name].copy_(weights[name])
