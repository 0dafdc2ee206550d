"""Distilled students as artifact directories."""

import dataclasses
import json
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from verbdistill.config import DistillConfig
from verbdistill.seeing.histories import DistillReport
from verbdistill.seeing.report import write_report
from verbdistill.steps.result import DistillResult
from verbdistill.teachers.bias import TruncationBias
from verbdistill.wire import DistillationSpec, distillation_to_proto
from vlmpress.artifact import Artifact, create

BIAS = "truncation.json"
_DISTRIBUTION = "vlmpress-verbdistill"


def save_student(
    student: Any,
    processor: Any,
    result: DistillResult,
    config: DistillConfig,
    path: Path,
    parents: Sequence[tuple[str, str]] = (),
    *,
    bias: TruncationBias | None = None,
) -> Artifact:
    """Writes the student as a Hugging Face directory, and as an artifact of kind distillation.

    Beside the model's own files stands its report: report.json, report.md and, with matplotlib, plots. No verbalizers.

    Args:
        student: The trained student.
        processor: Its processor, or its tokenizer where it has none.
        result: What the distillation left.
        config: What it was told.
        path: A directory that does not exist yet.
        parents: (role, digest) of teacher and student as they were.
        bias: What truncated answers of the teacher did not show; kept as truncation.json.

    Raises:
        ArtifactError: The directory exists.
    """
    with create(path) as draft:
        student.save_pretrained(draft.path)
        processor.save_pretrained(draft.path)
        write_report(draft.path, report_of(result, config))
        metrics = {f"{name}_last_nats": values[-1] for name, values in result.losses.items() if values}
        if bias is not None:
            (draft.path / BIAS).write_text(json.dumps(bias.to_json()) + "\n", encoding="utf-8")
            metrics["truncation_last_bias_nats"] = bias.last_bias
        return draft.commit(
            distillation_to_proto(spec_of(result, config)),
            producer=(_DISTRIBUTION, version(_DISTRIBUTION)),
            parents=parents,
            metrics=metrics,
        )


def spec_of(result: DistillResult, config: DistillConfig) -> DistillationSpec:
    """The specification of a distillation artifact."""
    return DistillationSpec(
        student_layers=result.student_targets,
        teacher_layers=result.teacher_targets,
        num_verbalization_steps=config.num_verbalization_steps,
        num_interaction_steps=config.num_interaction_steps,
        num_sft_steps=config.num_sft_steps,
        temperature_scale=config.temperature_scale,
    )


def report_of(result: DistillResult, config: DistillConfig) -> DistillReport:
    """Everything that a report tells and draws."""
    return DistillReport(
        student_layers=result.student_targets,
        teacher_layers=result.teacher_targets,
        losses=result.losses,
        # Without target layers interaction has rows of none.
        target_losses={name: rows for name, rows in result.target_losses.items() if rows and rows[0]},
        matches=result.matches,
        settings=dataclasses.asdict(config),
    )
