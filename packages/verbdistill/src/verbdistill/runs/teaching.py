"""A run's teacher: its verbalizers trained or read, its answers perhaps kept on disk."""

from dataclasses import dataclass
from pathlib import Path

from torch import Tensor, nn

from verbdistill.data.batches import Batches
from verbdistill.loop.training import OnProgress
from verbdistill.losses.heads import Head
from verbdistill.models.parts import head_of
from verbdistill.runs.run_config import RunConfig
from verbdistill.steps.teaching import TAUGHT, local_teacher
from verbdistill.steps.verbalization import train_verbalizers
from verbdistill.teachers.cached import CachedTeacher
from verbdistill.teachers.local import LocalTeacher
from verbdistill.teachers.teacher import Teacher
from verbdistill.verbalizers.storing import load_verbalizers
from verbdistill.verbalizers.verbalizers import Verbalizers


@dataclass(frozen=True, kw_only=True, slots=True)
class RunTeacher:
    """Who is asked, and what was made for it.

    Attributes:
        asked: Gives answers, perhaps kept and truncated ones.
        local: Gives whole answers.
        verbalizers: Its own; None where the operation needs none.
        losses: Of every step of their training the loss of every target, nats; none where they were read.
    """

    asked: Teacher
    local: LocalTeacher
    verbalizers: Verbalizers | None
    losses: list[list[float]]


def open_teacher(
    config: RunConfig,
    model: nn.Module,
    student: nn.Module,
    batches: Batches,
    words: tuple[Tensor, Tensor] | None,
    on_progress: OnProgress | None,
) -> RunTeacher:
    """The teacher that a run asks.

    Raises:
        VerbalizersError: The directory of its verbalizers holds others.
        NonFiniteLossError, BatchError, CheckpointError, TargetError: As of `train_verbalizers`.
    """
    verbalizers: Verbalizers | None = None
    losses: list[list[float]] = []
    if config.distill.intermediate in TAUGHT:
        if config.teacher_verbalizers is not None:
            verbalizers = load_verbalizers(config.teacher_verbalizers, model).to(head_of(model).weight.device)
        else:
            folder = _folder(config.checkpoint_dir)
            verbalizers, losses = train_verbalizers(
                model, batches, config.distill, role="teacher", checkpoint_dir=folder, on_progress=on_progress
            )
    local = local_teacher(model, config.distill, verbalizers)
    asked: Teacher = local
    if config.answers_dir is not None:
        asked = CachedTeacher(
            local, config.answers_dir, config.answers_words, head=_shared(local.head, head_of(student), words)
        )
    return RunTeacher(asked=asked, local=local, verbalizers=verbalizers, losses=losses)


def _shared(teacher: Head, student: Head, words: tuple[Tensor, Tensor] | None) -> Head:
    """The teacher's head of the words that the student has too."""
    if words is not None:
        return teacher.rows(words[0].to(teacher.weight.device))
    return teacher.first(min(teacher.num_words, student.num_words))


def _folder(checkpoint_dir: Path | None) -> Path | None:
    return None if checkpoint_dir is None else checkpoint_dir / "verbalization_teacher"
