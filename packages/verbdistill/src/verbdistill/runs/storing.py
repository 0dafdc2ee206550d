"""Verbalizers and distilled students as artifact directories."""

import json
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from verbdistill.config import DistillConfig
from verbdistill.steps.distilling import DistillResult
from verbdistill.verbalizers.storing import load_verbalizers, save_verbalizers
from verbdistill.wire import (
    DistillationSpec,
    distillation_to_proto,
)
from vlmpress.artifact import Artifact, create

__all__ = ["load_verbalizers", "report", "save_student", "save_verbalizers"]

REPORT = "distillation.json"
_DISTRIBUTION = "vlmpress-verbdistill"
PRODUCER = (_DISTRIBUTION, version(_DISTRIBUTION))


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
