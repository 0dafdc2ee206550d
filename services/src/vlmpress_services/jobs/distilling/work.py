"""What the processes of a DistillJob do; imports verbdistill and torch, so import it late."""

import dataclasses
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from transformers import AutoProcessor
from transformers.utils import logging as transformers_logging

from verbdistill import (
    LocalTeacher,
    Verbalizers,
    distill,
    load_verbalizers,
    report_of,
    save_verbalizers,
    train_verbalizers,
)
from verbdistill.data.pairing import PairRecordBatches
from verbdistill.loop.ranks import rank, world_size
from verbdistill.losses.heads import Head
from verbdistill.runs.pairing import open_batches, open_words
from verbdistill.runs.run_config import RunConfig
from verbdistill.runs.students import spec_of
from verbdistill.seeing.histories import DistillReport
from verbdistill.seeing.loading import load_model
from verbdistill.steps.teaching import TAUGHT, local_teacher
from verbdistill.teachers.teacher import Teacher, TeacherAnswer, TruncatedAnswer
from verbdistill.wire import DistillationSpec
from vlmpress.artifact import import_model_code, read
from vlmpress_services.jobs.distilling.progress import StepReport, StepReporter
from vlmpress_services.jobs.distilling.settings import CHECKPOINTS, DISTILLED, VERBALIZERS, DistillPlan, config_of

if TYPE_CHECKING:
    from vlmpress_services.workers.teachers import TeacherPool

VERBALIZATION = "verbalization_teacher"
OnStep = Callable[[StepReport], None]


@dataclass(frozen=True, kw_only=True, slots=True)
class Outcome:
    """What a run gave beside the models in its folder.

    Attributes:
        spec: What the student came from.
        report: Losses and matches.
        waited_s: How long the first worker waited for teachers elsewhere, since it was started or went on.
    """

    spec: DistillationSpec
    report: DistillReport
    waited_s: float


class OpenTeacher:
    """The run's teacher with its own micro-batches, in whatever process it is."""

    def __init__(self, plan: DistillPlan) -> None:
        self._config = config_of(plan)
        self._teacher = _teacher(plan, self._config)
        self._processors = _processors(self._config)
        self._batches: dict[tuple[int, int], PairRecordBatches] = {}

    @property
    def layers(self) -> tuple[int, ...]:
        """Target layers."""
        return self._teacher.layers

    @property
    def head(self) -> Head:
        """The language head."""
        return self._teacher.head

    @property
    def fingerprint(self) -> str:
        """Of all weights."""
        return self._teacher.fingerprint

    def answer(self, index: int, rank: int, world_size: int) -> TeacherAnswer | TruncatedAnswer:
        """What it says of a worker's part of a micro-batch."""
        if (rank, world_size) not in self._batches:
            batches = open_batches(self._config, self._processors, rank=rank, world_size=world_size)
            self._batches[rank, world_size] = batches
        return self._teacher.answer(index, self._batches[rank, world_size](index).teacher)


def verbalize_teacher(plan: DistillPlan, *, on_progress: OnStep) -> list[list[float]]:
    """Trains the teacher's verbalizers, alone or as one of several workers; they are whole in the run's folder then.

    Returns:
        Of every step the loss of every target, nats.
    """
    _quieten()
    config = config_of(plan)
    verbalizers, losses = train_verbalizers(
        _model(config.teacher),
        open_batches(config, _processors(config), rank=rank(), world_size=world_size()),
        config.distill,
        role="teacher",
        checkpoint_dir=plan.folder / CHECKPOINTS / VERBALIZATION,
        on_progress=StepReporter(on_progress, config.distill),
    )
    _keep(verbalizers, plan.teacher_verbalizers, plan.teacher)
    return losses


def distil(plan: DistillPlan, teachers: "TeacherPool | None", *, on_progress: OnStep) -> Outcome:
    """Trains the student from the newest whole checkpoint on, alone or as one of several workers.

    It trains in float32 and is kept in the type it came in.

    Args:
        plan: The run; its teacher's verbalizers are there.
        teachers: Whom to ask; None: the teacher is opened in this process.
        on_progress: Called after each step.

    Raises:
        verbdistill.VerbDistillError: The models do not fit each other, or the run ended on its data or its loss.
    """
    _quieten()
    config = config_of(plan)
    student, processors = _model(config.student), _processors(config)
    dtype = student.dtype
    teacher: Any = _teacher(plan, config) if teachers is None else _remote(teachers, config)
    result = distill(
        teacher,
        student.float(),
        open_batches(config, processors, rank=rank(), world_size=world_size()),
        config.distill,
        words=open_words(config.distill, processors),
        checkpoint_dir=plan.folder / CHECKPOINTS,
        on_progress=StepReporter(on_progress, config.distill),
    )
    if result.student_verbalizers is not None:
        _keep(result.student_verbalizers, plan.folder / VERBALIZERS / "student", plan.student)
    if rank() == 0:
        # A worker that dies after it has written the model is started again.
        shutil.rmtree(plan.folder / DISTILLED, ignore_errors=True)
        student.to(dtype).save_pretrained(plan.folder / DISTILLED)
        processors[1].save_pretrained(plan.folder / DISTILLED)
    return Outcome(
        spec=spec_of(result, config.distill),
        report=report_of(result, config.distill),
        waited_s=0.0 if teachers is None else teacher.waited_s,
    )


def with_teacher_losses(outcome: Outcome, losses: list[list[float]]) -> Outcome:
    """The same with what `verbalize_teacher` gave."""
    report = dataclasses.replace(
        outcome.report,
        losses={**outcome.report.losses, VERBALIZATION: [sum(row) / len(row) for row in losses]},
        target_losses={**outcome.report.target_losses, VERBALIZATION: losses},
    )
    return dataclasses.replace(outcome, report=report)


def _remote(teachers: "TeacherPool", config: RunConfig) -> Teacher:
    from vlmpress_services.workers.teachers import RemoteTeacher

    steps = config.distill.num_verbalization_steps + config.distill.num_interaction_steps
    return RemoteTeacher(teachers, end=steps * config.distill.accumulation_steps, rank=rank(), world_size=world_size())


def _teacher(plan: DistillPlan, config: RunConfig) -> LocalTeacher:
    model = _model(config.teacher)
    verbalizers = None
    if config.distill.intermediate in TAUGHT:
        verbalizers = load_verbalizers(plan.teacher_verbalizers, model).to(model.device)
    return local_teacher(model, config.distill, verbalizers)


def _processors(config: RunConfig) -> tuple[Any, Any]:
    """The teacher's and the student's."""
    found = []
    for path in (config.teacher, config.student):
        import_model_code(path)
        found.append(AutoProcessor.from_pretrained(path))
    return found[0], found[1]


def _model(path: Path) -> Any:
    # Ray says which device a process has; one without any may still see those of others.
    device = os.environ.get("ACCELERATE_TORCH_DEVICE", "cuda" if torch.cuda.is_available() else "cpu")
    return load_model(path)[0].to(device)


def _keep(verbalizers: Verbalizers, path: Path, model: Path) -> None:
    """Whole or not at all; a worker that is started again finds them there."""
    if rank() == 0 and not path.exists():
        path.parent.mkdir(exist_ok=True)
        save_verbalizers(verbalizers, path, [("model", read(model).digest)])


def _quieten() -> None:
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
