"""Verbalizers and distilled students as artifact directories."""

import json
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from verbdistill.config import DistillConfig
from verbdistill.errors import CheckpointError, TargetError, VerbalizersError
from verbdistill.loop.checkpointing import owned_parameters, restore_parameters
from verbdistill.steps.distilling import DistillResult
from verbdistill.verbalizers.verbalizers import Verbalizers
from verbdistill.wire import (
    DistillationSpec,
    VerbalizersSpec,
    distillation_to_proto,
    verbalizers_from_proto,
    verbalizers_to_proto,
)
from vlmpress.artifact import Artifact, create, verify

WEIGHTS = "verbalizers.safetensors"
CONFIG = "config.json"
REPORT = "distillation.json"
_DISTRIBUTION = "vlmpress-verbdistill"
PRODUCER = (_DISTRIBUTION, version(_DISTRIBUTION))


def save_verbalizers(verbalizers: Verbalizers, path: Path, parents: Sequence[tuple[str, str]] = ()) -> Artifact:
    """Writes verb-FFNs as an artifact of kind verbalizers; norm and head stay the backbone's.

    Args:
        verbalizers: What to write.
        path: A directory that does not exist yet.
        parents: (role, digest), for example of the backbone.

    Raises:
        ArtifactError: The directory exists.
    """
    spec = VerbalizersSpec(layers=verbalizers.layers, hidden_size=verbalizers.hidden_size)
    with create(path) as draft:
        weights = {name: value.contiguous() for name, value in owned_parameters(verbalizers).items()}
        save_file(weights, draft.path / WEIGHTS)
        fields = {"layers": list(spec.layers), "hidden_size": spec.hidden_size}
        (draft.path / CONFIG).write_text(json.dumps(fields, indent=2, sort_keys=True) + "\n", encoding="utf-8")
        return draft.commit(verbalizers_to_proto(spec), producer=PRODUCER, parents=parents)


def load_verbalizers(path: Path, model: nn.Module) -> Verbalizers:
    """Reads verbalizers beside the model they were trained with, every byte checked.

    Raises:
        ArtifactError: No artifact is there; ArtifactFaultError if its bytes were changed.
        VerbalizersError: It is of another kind, or does not fit the model.
    """
    artifact = verify(path)
    if artifact.manifest.kind != "verbalizers":
        raise VerbalizersError(f"{path}: expected an artifact of kind verbalizers, got {artifact.manifest.kind}")
    spec = verbalizers_from_proto(artifact.manifest.verbalizers)
    try:
        verbalizers = Verbalizers(model, spec.layers)
        if verbalizers.hidden_size != spec.hidden_size:
            raise VerbalizersError(
                f"{path}: expected verbalizers of hidden size {verbalizers.hidden_size}, got {spec.hidden_size}"
            )
        restore_parameters(verbalizers, load_file(path / WEIGHTS), str(path / WEIGHTS))
    except (TargetError, CheckpointError, OSError, SafetensorError) as error:
        raise VerbalizersError(f"{path}: {error}") from error
    return verbalizers


def save_student(
    student: Any,
    processor: Any,
    result: DistillResult,
    config: DistillConfig,
    path: Path,
    parents: Sequence[tuple[str, str]] = (),
) -> Artifact:
    """Writes the student as a Hugging Face directory, and as an artifact of kind distillation.

    Beside the model's own files stands distillation.json: losses in nats and match counts. No verbalizers.

    Raises:
        ArtifactError: The directory exists.
    """
    spec = DistillationSpec(
        student_layers=result.student_targets,
        teacher_layers=result.teacher_targets,
        num_verbalization_steps=config.num_verbalization_steps,
        num_interaction_steps=config.num_interaction_steps,
        num_sft_steps=config.num_sft_steps,
        temperature_scale=config.temperature_scale,
    )
    with create(path) as draft:
        student.save_pretrained(draft.path)
        processor.save_pretrained(draft.path)
        text = json.dumps(report(result), indent=2, sort_keys=True) + "\n"
        (draft.path / REPORT).write_text(text, encoding="utf-8")
        metrics = {f"{name}_last_nats": values[-1] for name, values in result.losses.items() if values}
        return draft.commit(
            distillation_to_proto(spec),
            producer=PRODUCER,
            parents=parents,
            metrics=metrics,
        )


def report(result: DistillResult) -> dict[str, Any]:
    """What a report draws: losses in nats, target layers, and match counts [t_s, t_l] early and late."""
    return {
        "losses": result.losses,
        "student_layers": list(result.student_targets),
        "teacher_layers": list(result.teacher_targets),
        "match_counts_first": result.first_counts,
        "match_counts_last": result.last_counts,
    }
