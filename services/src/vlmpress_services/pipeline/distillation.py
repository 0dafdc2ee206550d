"""The distillation step: VLsI from the teacher into a fresh student, in whatever process a runner gives it."""

import json
import shutil
from pathlib import Path

from transformers import LlavaForConditionalGeneration

from stagetrain import Batches, ConversationCollator, ImageGroups
from verbdistill import DistillConfig, distill
from verbdistill.runs.students import spec_of
from verbdistill.wire import DistillationSpec, distillation_to_proto
from vlmpress.artifact import Artifact, read
from vlmpress_services.datasets import read_split
from vlmpress_services.pipeline.config import DistillStep, TrainStep
from vlmpress_services.pipeline.stepping import Outcome, Work
from vlmpress_services.pipeline.training import fresh_llava, model_spec
from vlmpress_services.workers.runners import OnProgress, Runner

MATCHES, LOSSES, STUDENT = "matches.json", "losses.json", "student"
IMAGES_PER_STEP = 16


def distil_student(
    teacher: str,
    tower: str,
    dataset: str,
    out: str,
    scratch: str,
    num_layers: int,
    config: DistillConfig,
    *,
    on_progress: OnProgress,
) -> DistillationSpec:
    """Distils into a student made as the plain one is; gives what the student came from.

    Args:
        teacher: Directory of the teacher.
        tower: Directory of the vision tower's artifact.
        dataset: Directory of the dataset's artifact.
        out: Empty folder for the student with its processor, the matched layers and the losses.
        scratch: Folder for the checkpoints.
        num_layers: Decoder layers of the student.
        config: Steps, rates and seed.
        on_progress: Called with (step, steps, note).
    """
    student, processor = fresh_llava(read(Path(tower)), num_layers, config.seed)
    batches = Batches(
        ImageGroups(read_split(Path(dataset), "train")),
        ConversationCollator(processor, seed=config.seed),
        IMAGES_PER_STEP,
        config.num_micro_batches,
        config.seed,
    )
    result = distill(
        LlavaForConditionalGeneration.from_pretrained(teacher),
        student,
        batches.__getitem__,
        config,
        checkpoint_dir=Path(scratch) / "phases",
        on_progress=lambda phase, done, _, loss: on_progress(*config.overall(phase, done), f"{phase} loss {loss:.3f}"),
    )
    student.save_pretrained(Path(out) / STUDENT)
    processor.save_pretrained(Path(out) / STUDENT)
    matches = {"first": result.first_counts, "last": result.last_counts}
    (Path(out) / MATCHES).write_text(json.dumps(matches, indent=2) + "\n", encoding="utf-8")
    (Path(out) / LOSSES).write_text(json.dumps(result.losses) + "\n", encoding="utf-8")
    return spec_of(result, config)


def read_matches(artifact: Artifact) -> dict[str, list[list[int]]]:
    """Matched-layer counts of a distillation artifact."""
    matches: dict[str, list[list[int]]] = json.loads((artifact.path / MATCHES).read_text(encoding="utf-8"))
    return matches


def make_distillation(
    teacher: Artifact,
    tower: Artifact,
    dataset: Artifact,
    student: TrainStep,
    config: DistillStep,
    seed: int,
    runner: Runner,
    work: Work,
) -> Outcome:
    """Distils where the runner says, then takes over what it left."""
    settings = DistillConfig(
        num_verbalization_steps=config.num_verbalization_steps,
        num_interaction_steps=config.num_interaction_steps,
        num_sft_steps=config.num_sft_steps,
        verbalization_lr=config.verbalization_learning_rate,
        interaction_lr=config.interaction_learning_rate,
        sft_lr=config.sft_learning_rate,
        lora_rank=None,  # a student from scratch has nothing for an adapter to adapt
        seed=seed,
    )
    made = work.scratch / "result"
    shutil.rmtree(made, ignore_errors=True)
    made.mkdir()
    spec: DistillationSpec = runner.call(
        distil_student,
        str(teacher.path),
        str(tower.path),
        str(dataset.path),
        str(made),
        str(work.scratch),
        student.num_layers,
        settings,
        on_progress=work.progress.update,
    )
    for path in sorted(made.iterdir()):
        shutil.move(path, work.path / path.name)
    return Outcome(distillation_to_proto(spec), {})


def export_student(distillation: Artifact, work: Work) -> Outcome:
    """The distilled student as a model of its own, without anything that training alone needed."""
    shutil.copytree(distillation.path / STUDENT, work.path, dirs_exist_ok=True)
    student = LlavaForConditionalGeneration.from_pretrained(work.path)
    return Outcome(model_spec(student), {})
