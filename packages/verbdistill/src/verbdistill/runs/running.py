"""`verbdistill run`: from directories and a dataset file to a distilled student's directory."""

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from verbdistill.config import DistillConfig
from verbdistill.data.batches import Batches
from verbdistill.errors import ConfigError
from verbdistill.loop.ranks import rank, world_size
from verbdistill.loop.training import OnProgress
from verbdistill.models.parts import decoder_layers
from verbdistill.models.presets import preset_targets
from verbdistill.runs.pairing import open_batches, open_words
from verbdistill.runs.processes import joined
from verbdistill.runs.run_config import RunConfig
from verbdistill.runs.students import save_student
from verbdistill.runs.teaching import RunTeacher, open_teacher
from verbdistill.runs.timing import StepTimes, step_times
from verbdistill.seeing.loading import load_model
from verbdistill.steps.distilling import distill
from verbdistill.steps.result import DistillResult
from verbdistill.teachers.bias import TruncationBias, bias_report
from verbdistill.verbalizers.storing import save_verbalizers
from vlmpress.artifact import Artifact, read

_BIAS_BATCHES = 2


def run(config: RunConfig, on_progress: OnProgress | None = None) -> tuple[Artifact | None, DistillResult]:
    """Distils as a file says; the student's directory appears whole at the end or not at all.

    The student trains in float32 and is written in the type it came in. Processes that torchrun starts share every
    step; the first one writes, the others give no artifact.

    Raises:
        ConfigError: A directory is no model, or an output exists already.
        VocabularyMismatchError: The two tokenizers differ and no alignment was asked for.
        DataError: The dataset file is bad.
        VerbDistillError: As of `distill`.
    """
    for path in (config.out, config.verbalizers_out):
        # Known now, not after hours of training.
        if path is not None and path.exists():
            raise ConfigError(f"{path}: expected a path that does not exist yet")
    with joined() as device:
        pair = _opened(config, device)
        config, student, batches, words = pair.config, pair.student, pair.batches, pair.words
        asked = open_teacher(config, pair.teacher, student, batches, words, on_progress)
        result = _distilled(config, asked, student, batches, words, on_progress)
        bias = _bias(config, asked, student, result, batches, words)
        if rank():
            return None, result
        parents = _parents(config)
        _save_verbalizers(config, result, parents)
        student.to(pair.dtype)
        return save_student(student, pair.processor, result, config.distill, config.out, parents, bias=bias), result


def bench(config: RunConfig, num_steps: int) -> StepTimes:
    """What an interaction step of a run costs on this machine, alone; nothing is written.

    Raises:
        ConfigError: A directory is no model.
        VocabularyMismatchError, DataError, VerbDistillError: As of `run`.
    """
    pair = _opened(config, torch.device("cuda" if torch.cuda.is_available() else "cpu"))
    return step_times(
        pair.teacher, pair.student, pair.batches, pair.config.distill, num_steps=num_steps, words=pair.words
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class _Opened:
    """What a run's file names; `dtype` is the one the student came in."""

    config: RunConfig
    teacher: Any
    student: Any
    processor: Any
    batches: Batches
    words: tuple[Tensor, Tensor] | None
    dtype: torch.dtype


def _opened(config: RunConfig, device: torch.device) -> _Opened:
    (teacher, teacher_processor), (student, processor) = load_model(config.teacher), load_model(config.student)
    dtype = student.dtype
    teacher.to(device)
    student.to(device).float()
    config = dataclasses.replace(config, distill=_settings(config, teacher, student), targets=None)
    processors = (teacher_processor, processor)
    return _Opened(
        config=config,
        teacher=teacher,
        student=student,
        processor=processor,
        batches=open_batches(config, processors, rank=rank(), world_size=world_size()),
        words=open_words(config.distill, processors),
        dtype=dtype,
    )


def _settings(config: RunConfig, teacher: Any, student: Any) -> DistillConfig:
    if config.targets is None:
        return config.distill
    ours, theirs = preset_targets(
        config.targets,
        num_student_layers=len(decoder_layers(student)),
        num_teacher_layers=len(decoder_layers(teacher)),
    )
    return dataclasses.replace(config.distill, student_targets=ours, teacher_targets=theirs)


def _distilled(
    config: RunConfig,
    teacher: RunTeacher,
    student: Any,
    batches: Batches,
    words: tuple[Tensor, Tensor] | None,
    on_progress: OnProgress | None,
) -> DistillResult:
    """The result, with what the teacher's verbalizers had to learn before."""
    result = distill(
        teacher.asked,
        student,
        batches,
        config.distill,
        words=words,
        checkpoint_dir=config.checkpoint_dir,
        on_progress=on_progress,
    )
    name = "verbalization_teacher"
    return dataclasses.replace(
        result,
        losses=result.losses | {name: [sum(row) / len(row) for row in teacher.losses]},
        target_losses=result.target_losses | {name: teacher.losses},
        teacher_verbalizers=teacher.verbalizers,
    )


def _bias(
    config: RunConfig,
    teacher: RunTeacher,
    student: Any,
    result: DistillResult,
    batches: Any,
    words: tuple[Tensor, Tensor] | None,
) -> TruncationBias | None:
    """What the trained student was not shown where answers were truncated, on some batches of interaction."""
    if config.answers_dir is None or result.student_verbalizers is None or config.distill.intermediate != "kl":
        return None
    first = config.distill.num_verbalization_steps * config.distill.accumulation_steps
    some = [batches(first + number) for number in range(_BIAS_BATCHES)]
    return bias_report(
        teacher.local,
        student,
        result.student_verbalizers,
        some,
        config.answers_words,
        words=words,
        logits_bytes=config.distill.logits_bytes,
    )


def _parents(config: RunConfig) -> list[tuple[str, str]]:
    """(role, digest) of the model directories that are artifacts."""
    folders: dict[str, Path] = {"teacher": config.teacher, "student": config.student}
    return [(role, read(path).digest) for role, path in folders.items() if (path / "manifest.json").exists()]


def _save_verbalizers(config: RunConfig, result: DistillResult, parents: list[tuple[str, str]]) -> None:
    if config.verbalizers_out is None:
        return
    for role, verbalizers in {"teacher": result.teacher_verbalizers, "student": result.student_verbalizers}.items():
        if verbalizers is not None:
            own = [parent for parent in parents if parent[0] == role]
            save_verbalizers(verbalizers, config.verbalizers_out / role, own)
