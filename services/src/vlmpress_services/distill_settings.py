"""A DistillJob as verbdistill's configuration of a run; imports verbdistill, so import it late."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from verbdistill.errors import VerbDistillError
from verbdistill.runs.run_config import RunConfig, read_run_config
from vlmpress.job.v1 import job_pb2 as pb
from vlmpress_services.datasets import IMAGES, RECORDS
from vlmpress_services.errors import InvalidRequestError

SETTINGS, CHECKPOINTS, DISTILLED, VERBALIZERS = "run.yaml", "checkpoints", "distilled", "verbalizers"
# Nothing that names a path; the seed is a field of the job.
SECTIONS = ("batch_size", "distill")
DEFAULTS = {"save_steps": 200}


@dataclass(frozen=True, kw_only=True, slots=True)
class DistillPlan:
    """Everything a run depends on; equal on every worker.

    Attributes:
        teacher: Directory of the teacher and its processor.
        student: Directory of the student as it is before, and its processor.
        dataset: Directory of the dataset artifact.
        folder: Of the run; holds SETTINGS.
        verbalizers: Directory of the teacher's verbalizers; None: they train first, into `folder`.
    """

    teacher: Path
    student: Path
    dataset: Path
    folder: Path
    verbalizers: Path | None

    @property
    def teacher_verbalizers(self) -> Path:
        """Where the teacher's verbalizers are once they are trained."""
        return self.verbalizers or self.folder / VERBALIZERS / "teacher"


def plan_of(
    job: pb.DistillJob, teacher: Path, student: Path, dataset: Path, folder: Path, verbalizers: Path | None
) -> DistillPlan:
    """The plan of a job, whose settings are written into `folder`.

    Raises:
        InvalidRequestError: The settings are no mapping of what may be told.
    """
    plan = DistillPlan(teacher=teacher, student=student, dataset=dataset, folder=folder, verbalizers=verbalizers)
    told = _told(job.settings_yaml)
    if "seed" in told.get("distill", {}):
        raise InvalidRequestError("settings_yaml: distill: expected the seed as a field of the job, got one here")
    fields = {
        **told,
        "distill": {**DEFAULTS, **told.get("distill", {}), "seed": job.seed},
        "teacher": str(teacher),
        "student": str(student),
        "data": str(dataset / RECORDS),
        "images": str(dataset / IMAGES),
        "out": str(folder / DISTILLED),
        "checkpoint_dir": str(folder / CHECKPOINTS),
        "verbalizers_out": str(folder / VERBALIZERS),
    }
    (folder / SETTINGS).write_text(yaml.safe_dump(fields), encoding="utf-8")
    return plan


def config_of(plan: DistillPlan) -> RunConfig:
    """Verbdistill's configuration of a plan.

    Raises:
        InvalidRequestError: Names the field.
    """
    try:
        return read_run_config(plan.folder / SETTINGS)
    except VerbDistillError as error:
        raise InvalidRequestError(str(error).replace(str(plan.folder / SETTINGS), "settings_yaml")) from error


def _told(text: str) -> dict[str, Any]:
    try:
        # A few lines of them can stand for more than any memory holds.
        if any(isinstance(token, yaml.AliasToken) for token in yaml.scan(text)):
            raise InvalidRequestError("settings_yaml: expected YAML without aliases, got some")
        told = yaml.safe_load(text)
    except (yaml.YAMLError, RecursionError) as error:
        raise InvalidRequestError(f"settings_yaml: expected YAML, got {' '.join(str(error).split())}") from error
    if not isinstance(told, dict) or not isinstance(told.get("distill", {}), dict):
        raise InvalidRequestError("settings_yaml: expected a mapping with a mapping distill, got something else")
    for name in told:
        if name not in SECTIONS:
            raise InvalidRequestError(f"settings_yaml: expected some of {', '.join(SECTIONS)}, got {name!r:.80}")
    return told
