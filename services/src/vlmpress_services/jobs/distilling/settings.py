"""A DistillJob as verbdistill's configuration of a run; imports verbdistill, so import it late."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml
from transformers import AutoConfig

from verbdistill.errors import VerbDistillError
from verbdistill.models.presets import preset_targets
from verbdistill.runs.run_config import RunConfig, read_run_config
from vlmpress.artifact import import_model_code
from vlmpress.job.v1 import job_pb2 as pb
from vlmpress_services.datasets import IMAGES, RECORDS
from vlmpress_services.errors import InvalidRequestError

SETTINGS, CHECKPOINTS, DISTILLED, VERBALIZERS = "run.yaml", "checkpoints", "distilled", "verbalizers"
# Nothing that names a path; the seed is a field of the job.
SECTIONS = ("batch_size", "max_length", "targets", "distill")
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
    """Verbdistill's configuration of a plan, the layers of a preset named.

    Raises:
        InvalidRequestError: Names the field.
    """
    try:
        config = read_run_config(plan.folder / SETTINGS)
        if config.targets is None:
            return config
        depths = {"num_student_layers": num_layers(plan.student), "num_teacher_layers": num_layers(plan.teacher)}
        student, teacher = preset_targets(config.targets, **depths)
        distill = replace(config.distill, student_targets=student, teacher_targets=teacher)
        return replace(config, targets=None, distill=distill)
    except VerbDistillError as error:
        raise _named(error, plan) from error


def _named(error: VerbDistillError, plan: DistillPlan) -> InvalidRequestError:
    """The error about a configuration as one about the job's field."""
    text = str(error).removeprefix(f"{plan.folder / SETTINGS}: ")
    return InvalidRequestError(f"settings_yaml: {text}")


def num_layers(model: Path) -> int:
    """Decoder layers of a model's directory.

    Raises:
        InvalidRequestError: It has no configuration of a vision-language or language model.
    """
    import_model_code(model)
    try:
        return int(AutoConfig.from_pretrained(model).get_text_config().num_hidden_layers)
    except (OSError, ValueError, KeyError, AttributeError) as error:
        raise InvalidRequestError(
            f"model: expected the configuration of a vision-language model, got {error}"
        ) from error


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
