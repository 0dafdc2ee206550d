"""Distils a teacher into a student in the three steps of VLsI."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from verbdistill.config import DistillConfig
from verbdistill.loop.checkpointing import Checkpoints, fingerprint, owned_parameters, restore_parameters
from verbdistill.models.parts import decoder_layers
from verbdistill.models.targets import check_pair, check_targets, default_targets
from verbdistill.steps.phases import (
    INTERACTION,
    SFT,
    VERBALIZATION,
    Batches,
    OnProgress,
    Pair,
    run_interaction,
    run_sft,
    run_verbalization,
)
from verbdistill.verbalizers.verbalizers import Verbalizers


@dataclass(frozen=True, kw_only=True, slots=True)
class DistillResult:
    """What a distillation leaves; the student itself was trained in place.

    Attributes:
        losses: Nats, one a step: "verbalization_teacher", "verbalization_student" (means over targets),
            "interaction" (all KLs), "interaction_last" (the last layer's), "sft".
        matches: 0-based teacher target of each student target, of each interaction step.
        student_targets: 1-based student layers, rows of the match counts.
        teacher_targets: 1-based teacher layers, columns of the match counts.
        teacher_verbalizers: A training aid, apart from any exported model.
        student_verbalizers: The student's.
    """

    losses: dict[str, list[float]]
    matches: list[list[int]]
    student_targets: tuple[int, ...]
    teacher_targets: tuple[int, ...]
    teacher_verbalizers: Verbalizers
    student_verbalizers: Verbalizers

    @property
    def first_counts(self) -> list[list[int]]:
        """How often each pair matched in the first tenth of interaction (at least one step), [t_s, t_l]."""
        return self._counts(self.matches[: self._tenth])

    @property
    def last_counts(self) -> list[list[int]]:
        """The same for the last tenth."""
        return self._counts(self.matches[max(0, len(self.matches) - self._tenth) :])

    @property
    def _tenth(self) -> int:
        return max(1, len(self.matches) // 10)

    def _counts(self, matches: Sequence[Sequence[int]]) -> list[list[int]]:
        counts = [[0] * len(self.teacher_targets) for _ in self.student_targets]
        for match in matches:
            for row, column in enumerate(match):
                counts[row][column] += 1
        return counts


def distill(
    teacher: nn.Module,
    student: nn.Module,
    batches: Batches,
    config: DistillConfig,
    *,
    checkpoint_dir: Path | None = None,
    on_progress: OnProgress | None = None,
) -> DistillResult:
    """Verbalization, interaction, SFT; trains `student` in place, leaves `teacher` as it is.

    The same models, batches, configuration and machine give the same weights. With `checkpoint_dir` every
    finished phase is kept there; a run that was killed is called again with the models it began with, goes on
    at the start of the phase it was in and ends with the weights of an unbroken run. Source: VLsI, Section 3.

    Args:
        teacher: A Llava-like model.
        student: One of fewer or as many target layers; same token ids.
        batches: The universal batch of a global step; steps count on over the three phases.
        config: What to do.
        checkpoint_dir: Folder of this run alone.
        on_progress: Called after every optimizer step.

    Raises:
        TargetError: Targets do not fit the models, or the teacher has fewer.
        UnsupportedModelError: A model is not Llava-like.
        BatchError: A batch has no response token.
        VocabularyMismatchError: A label lies outside the vocabulary both share.
        NonFiniteLossError: A loss became NaN; the message has the phase and the global step.
        CheckpointError: `checkpoint_dir` holds another run.
    """
    pair = _pair(teacher, student, config)
    report = on_progress or _silent
    checkpoints = Checkpoints(
        checkpoint_dir,
        fingerprint(config, {"teacher": teacher, "student": student}) if checkpoint_dir is not None else "",
    )
    with _evaluating(teacher):
        losses = _verbalize(pair, batches, config, checkpoints, report)
        later = checkpoints.load(SFT)
        interaction, matches = _interact(pair, batches, config, checkpoints, report, restore=later is None)
        losses |= interaction
        losses |= _finetune(pair, batches, config, checkpoints, report)
    return DistillResult(
        losses=losses,
        matches=matches,
        student_targets=pair.student_verbalizers.layers,
        teacher_targets=pair.teacher_verbalizers.layers,
        teacher_verbalizers=pair.teacher_verbalizers,
        student_verbalizers=pair.student_verbalizers,
    )


def _pair(teacher: nn.Module, student: nn.Module, config: DistillConfig) -> Pair:
    layers = []
    for name, model, given in (
        ("teacher", teacher, config.teacher_targets),
        ("student", student, config.student_targets),
    ):
        depth = len(decoder_layers(model))
        layers.append(check_targets(default_targets(depth) if given is None else given, depth, name))
    check_pair(student=layers[1], teacher=layers[0])
    generator = torch.Generator().manual_seed(config.seed)
    return Pair(
        teacher=teacher,
        student=student,
        teacher_verbalizers=Verbalizers(teacher, layers[0], generator=generator),
        student_verbalizers=Verbalizers(student, layers[1], generator=generator),
    )


def _verbalize(
    pair: Pair, batches: Batches, config: DistillConfig, checkpoints: Checkpoints, report: OnProgress
) -> dict[str, list[float]]:
    both = {"teacher": pair.teacher_verbalizers, "student": pair.student_verbalizers}
    kept = checkpoints.load(VERBALIZATION)
    if kept is not None:
        for name, verbalizers in both.items():
            restore_parameters(verbalizers, kept[0].get(name, {}), f"{VERBALIZATION}/{name}.safetensors")
        losses: dict[str, list[float]] = kept[1]["losses"]
    else:
        with _seeded(config, VERBALIZATION), _evaluating(pair.student):
            losses = run_verbalization(pair, batches, config, report)
        tensors = {name: owned_parameters(verbalizers) for name, verbalizers in both.items()}
        checkpoints.save(VERBALIZATION, tensors, {"losses": losses})
    for verbalizers in both.values():
        verbalizers.requires_grad_(False)
    return losses


def _interact(
    pair: Pair, batches: Batches, config: DistillConfig, checkpoints: Checkpoints, report: OnProgress, *, restore: bool
) -> tuple[dict[str, list[float]], list[list[int]]]:
    kept = checkpoints.load(INTERACTION)
    if kept is not None:
        if restore:
            restore_parameters(pair.student, kept[0].get("student", {}), f"{INTERACTION}/student.safetensors")
        return kept[1]["losses"], kept[1]["matches"]
    with _seeded(config, INTERACTION):
        losses, matches = run_interaction(pair, batches, config, report)
    state = {"losses": losses, "matches": matches}
    checkpoints.save(INTERACTION, {"student": owned_parameters(pair.student)}, state)
    return losses, matches


def _finetune(
    pair: Pair, batches: Batches, config: DistillConfig, checkpoints: Checkpoints, report: OnProgress
) -> dict[str, list[float]]:
    kept = checkpoints.load(SFT)
    if kept is not None:
        restore_parameters(pair.student, kept[0].get("student", {}), f"{SFT}/student.safetensors")
        losses: dict[str, list[float]] = kept[1]["losses"]
        return losses
    with _seeded(config, SFT):
        losses = run_sft(pair.student, batches, config, report)
    checkpoints.save(SFT, {"student": owned_parameters(pair.student)}, {"losses": losses})
    return losses


@contextmanager
def _seeded(config: DistillConfig, phase: str) -> Iterator[None]:
    """Dropout and LoRA draw from the global generator: each phase begins it anew, callers keep theirs."""
    order = (VERBALIZATION, INTERACTION, SFT)
    with torch.random.fork_rng():
        torch.manual_seed(config.seed * len(order) + order.index(phase))
        yield


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(training)


def _silent(*_ignored: Any) -> None:
    pass
