"""What a worker of a TrainJob does; imports stagetrain and torch, so import it late."""

import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForImageTextToText, AutoProcessor
from transformers.utils import logging as transformers_logging

from stagetrain import ConversationCollator, ImageGroups, Schedule, TrainResult, train
from stagetrain.saved_setting import save_compression
from vlmpress.artifact import import_model_code
from vlmpress_services.datasets import read_split
from vlmpress_services.errors import InvalidRequestError
from vlmpress_services.train_progress import StepReport, StepReporter
from vlmpress_services.train_settings import TrainSettings, training_arguments

CHECKPOINTS, TRAINED = "checkpoints", "trained"


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainPlan:
    """Everything a run depends on; equal on every worker.

    Attributes:
        model: Directory of the model and its processor.
        dataset: Directory of the dataset artifact.
        folder: Of the run: checkpoints, and at the end the trained model in TRAINED.
        schedule: The stages.
        settings: How to train.
        seed: Of new weights, data order and dropout.
    """

    model: Path
    dataset: Path
    folder: Path
    schedule: Schedule
    settings: TrainSettings
    seed: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Outcome:
    """What a run gave beside the model in its folder.

    Attributes:
        losses: Of every optimizer step, nats.
        resumed_from_step: Step of the checkpoint it went on from.
        skipped: A line for each sample that was left out.
        tokens_per_second: Of each stage since then, all workers together; None for a stage without a step.
    """

    losses: tuple[float, ...]
    resumed_from_step: int | None
    skipped: tuple[str, ...]
    tokens_per_second: tuple[float | None, ...]

    @property
    def final_loss(self) -> float:
        """Mean of the last tenth: one batch's loss says little."""
        tail = self.losses[-max(1, len(self.losses) // 10) :]
        return sum(tail) / len(tail)


def run_plan(plan: TrainPlan, *, on_progress: Callable[[StepReport], None]) -> Outcome:
    """Trains from the newest whole checkpoint of the run's folder on, alone or as one of several workers.

    Raises:
        InvalidRequestError: The model or a setting cannot be used.
        stagetrain.StageTrainError: The plan does not fit the model or the data.
    """
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    args = training_arguments(plan.settings, str(plan.folder / CHECKPOINTS), plan.seed)
    # A compressor's new weights must be the same on every worker, and after a restart.
    torch.manual_seed(plan.seed)
    model, processor = _load(plan.model)
    result = train(
        model,
        ImageGroups(read_split(plan.dataset, "train")),
        _collator(processor, plan),
        plan.schedule,
        args,
        freeze=plan.settings.freeze,
        processor=processor,
        callbacks=[StepReporter(on_progress)],
    )
    if int(os.environ.get("RANK", "0")) == 0:
        _save(model, processor, result, plan.folder / TRAINED)
    return Outcome(
        losses=result.losses,
        resumed_from_step=result.resumed_from_step,
        skipped=result.skipped,
        tokens_per_second=result.tokens_per_second,
    )


def _load(directory: Path) -> tuple[Any, Any]:
    import_model_code(directory)
    try:
        # Small steps get lost in 16 bits; bf16 in the settings computes in them and keeps the weights.
        model = AutoModelForImageTextToText.from_pretrained(directory, dtype=torch.float32, local_files_only=True)
        return model, AutoProcessor.from_pretrained(directory, local_files_only=True)
    except (OSError, ValueError, KeyError) as error:
        raise InvalidRequestError(f"model: expected an image-text-to-text model, got: {error}") from error


def _collator(processor: Any, plan: TrainPlan) -> ConversationCollator:
    try:
        return ConversationCollator(processor, seed=plan.seed, **plan.settings.collator)
    except TypeError as error:
        raise InvalidRequestError(f"settings_yaml: collator: {error}") from error


def _save(model: Any, processor: Any, result: TrainResult, target: Path) -> None:
    draft = target.with_name(f".{target.name}.tmp")
    for folder in (draft, target):
        shutil.rmtree(folder, ignore_errors=True)
    model.save_pretrained(draft)
    processor.save_pretrained(draft)
    if result.attachment is not None:
        save_compression(draft, result.attachment)
    draft.rename(target)
