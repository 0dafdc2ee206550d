"""Distils a teacher into a student in the three steps of VLsI."""

from dataclasses import dataclass
from pathlib import Path

from torch import Tensor, nn

from verbdistill.config import DistillConfig
from verbdistill.data.batches import Batches
from verbdistill.loop.training import OnProgress
from verbdistill.models.parts import decoder_layers
from verbdistill.models.presets import check_depths
from verbdistill.models.targets import check_pair
from verbdistill.steps.finetuning import finetune
from verbdistill.steps.interaction import interact
from verbdistill.steps.operations import MATCHED
from verbdistill.steps.result import DistillResult
from verbdistill.steps.student_targets import SPEAKING
from verbdistill.steps.teaching import TAUGHT, local_teacher
from verbdistill.steps.verbalization import target_layers, train_verbalizers
from verbdistill.teachers.teacher import Teacher
from verbdistill.verbalizers.verbalizers import Verbalizers


def distill(
    teacher: nn.Module | Teacher,
    student: nn.Module,
    batches: Batches,
    config: DistillConfig,
    *,
    words: tuple[Tensor, Tensor] | None = None,
    checkpoint_dir: Path | None = None,
    on_progress: OnProgress | None = None,
) -> DistillResult:
    """Verbalization, interaction, SFT; trains `student` in place, leaves `teacher` as it is.

    The same models, batches, configuration and machine give the same weights, and but for rounding so do other
    splits of the same rows over micro-batches and processes. With `checkpoint_dir` finished phases are kept there,
    and every `save_steps` a phase's beginning; a run that was killed is called again with the models it began with,
    goes on there and ends with the weights of an unbroken run. Where torch.distributed is initialised, its processes
    share every step: each calls this with its own rows and the same folder. Source: VLsI, Section 3.

    Args:
        teacher: A model, whose verbalizers train first; or a `Teacher` that has its own.
        student: A model of fewer or as many target layers.
        batches: The micro-batch of an index; they count on over the three steps, and both models' verbalizers
            train on the same ones.
        config: What to do.
        words: As of `interact`.
        checkpoint_dir: Folder of this run alone.
        on_progress: Called after every optimizer step.

    Raises:
        TargetError: Targets do not fit the models, or the teacher has fewer.
        UnsupportedModelError: A model's parts are not where they are looked for.
        BatchError: A row has no response token.
        VocabularyMismatchError: A label lies outside the vocabulary both share.
        ConfigError: The operation, the alignment and the teacher do not fit each other.
        NonFiniteLossError: A loss became NaN; the message has the phase, the step and the micro-batch.
        CheckpointError: `checkpoint_dir` holds another run, or a damaged file.
    """
    run = _Run(
        teacher=teacher, student=student, batches=batches, config=config, folder=checkpoint_dir, show=on_progress
    )
    layers = run.check_targets()
    losses: dict[str, list[float]] = {"verbalization_teacher": [], "verbalization_student": []}
    target_losses: dict[str, list[list[float]]] = {"verbalization_teacher": [], "verbalization_student": []}
    asked, theirs, target_losses["verbalization_teacher"] = run.open_teacher(layers[0])
    ours = None
    if config.intermediate in SPEAKING:
        ours, target_losses["verbalization_student"] = run.verbalize(student, layers[1], "student")
    for name, rows in target_losses.items():
        losses[name] = [sum(row) / len(row) for row in rows]
    history = interact(
        asked,
        student,
        ours,
        batches,
        config,
        words=words,
        checkpoint_dir=run.folder_of("interaction"),
        on_progress=on_progress,
    )
    losses |= {"interaction": history.losses, "interaction_last": history.last_losses}
    losses["sft"] = finetune(student, batches, config, checkpoint_dir=run.folder_of("sft"), on_progress=on_progress)
    return DistillResult(
        losses=losses,
        target_losses=target_losses | {"interaction": history.target_losses},
        matches=history.matches,
        student_targets=layers[1],
        teacher_targets=layers[0],
        teacher_verbalizers=theirs,
        student_verbalizers=ours,
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class _Run:
    """What the phases of a run share."""

    teacher: nn.Module | Teacher
    student: nn.Module
    batches: Batches
    config: DistillConfig
    folder: Path | None
    show: OnProgress | None

    def folder_of(self, phase: str) -> Path | None:
        return None if self.folder is None else self.folder / phase

    def check_targets(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """The teacher's and the student's targets; known to fit before hours of training."""
        if self.config.intermediate == "none":
            return (), ()
        ours = target_layers(self.student, self.config, "student")
        if isinstance(self.teacher, nn.Module):
            theirs = target_layers(self.teacher, self.config, "teacher")
        else:
            theirs = self.teacher.layers
        if self.config.intermediate in MATCHED:
            if isinstance(self.teacher, nn.Module):
                check_depths(len(decoder_layers(self.student)), len(decoder_layers(self.teacher)))
            check_pair(student=ours, teacher=theirs)
        return theirs, ours

    def open_teacher(self, layers: tuple[int, ...]) -> tuple[Teacher, Verbalizers | None, list[list[float]]]:
        """Who is asked, the verbalizers that were made for it, and their losses."""
        if not isinstance(self.teacher, nn.Module):
            return self.teacher, None, []
        verbalizers: Verbalizers | None = None
        losses: list[list[float]] = []
        if self.config.intermediate in TAUGHT:
            verbalizers, losses = self.verbalize(self.teacher, layers, "teacher")
        return local_teacher(self.teacher, self.config, verbalizers), verbalizers, losses

    def verbalize(self, model: nn.Module, layers: tuple[int, ...], role: str) -> tuple[Verbalizers, list[list[float]]]:
        return train_verbalizers(
            model,
            self.batches,
            self.config,
            role=role,
            layers=layers,
            checkpoint_dir=self.folder_of(f"verbalization_{role}"),
            on_progress=self.show,
        )
