"""What a worker of a TrainJob does; imports stagetrain and torch, so import it late."""

import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.utils import logging as transformers_logging

from stagetrain import Schedule, StageTrainError, TrainResult, train
from stagetrain.attaching.saved_setting import save_compression
from stagetrain.runs.running import PreparedRun, prepare
from stagetrain.schedules.costs import PAPER_VISUAL_TOKENS
from vlmpress_services.errors import InvalidRequestError, ServicesError
from vlmpress_services.train_progress import StepReport, StepReporter
from vlmpress_services.train_settings import RunPlan, config_of, request_error

TRAINED = "trained"


class WorkersApartError(ServicesError, RuntimeError):
    """Workers that should share a run would each train alone."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Outcome:
    """What a run gave beside the model in its folder.

    Attributes:
        schedule: The stages as they were for this model.
        losses: Of every optimizer step, nats.
        resumed_from_step: Step of the checkpoint it went on from.
        skipped: A line for each sample that was left out.
        tokens_per_second: Of each stage since then, all workers together; None for a stage without a step.
    """

    schedule: Schedule
    losses: tuple[float, ...]
    resumed_from_step: int | None
    skipped: tuple[str, ...]
    tokens_per_second: tuple[float | None, ...]

    @property
    def final_loss(self) -> float:
        """Mean of the last tenth: one batch's loss says little."""
        tail = self.losses[-max(1, len(self.losses) // 10) :]
        return sum(tail) / len(tail)


def run_plan(plan: RunPlan, *, on_progress: Callable[[StepReport], None]) -> Outcome:
    """Trains from the newest whole checkpoint of the run's folder on, alone or as one of several workers.

    Raises:
        InvalidRequestError: The plan does not fit the model.
        stagetrain.StageTrainError: The run ended on its data or its loss.
        WorkersApartError: Trainer does not know of the other workers.
    """
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    # A compressor's new weights must be the same on every worker, and after a restart.
    torch.manual_seed(plan.seed)
    try:
        run = prepare(config_of(plan))
    except StageTrainError as error:
        raise request_error(error, plan) from error
    if run.args.fsdp and run.args.use_cpu:
        raise InvalidRequestError("settings_yaml: training.fsdp: expected a GPU for each worker, got none")
    num_workers = int(os.environ.get("WORLD_SIZE", "1"))
    if run.args.world_size != num_workers:
        raise WorkersApartError(f"training: expected {num_workers} workers, got {run.args.world_size}")
    whole = WholeWeights()
    result = train(
        run.model,
        run.samples,
        run.collator,
        run.schedule,
        run.args,
        freeze=run.config.freeze,
        num_visual_tokens=run.num_visual_tokens or PAPER_VISUAL_TOKENS,
        max_skipped=run.config.max_skipped,
        callbacks=[StepReporter(on_progress, len(run.schedule.stages)), whole],
    )
    if run.args.process_index == 0:
        _save(run, result, whole.weights, plan.folder / TRAINED)
    return Outcome(
        schedule=run.schedule,
        losses=result.losses,
        resumed_from_step=result.resumed_from_step,
        skipped=result.skipped,
        tokens_per_second=result.tokens_per_second,
    )


class WholeWeights(TrainerCallback):
    """Gathers weights that are spread over workers (FSDP) when the run ends; elsewhere the model has them."""

    def __init__(self) -> None:
        self.weights: dict[str, Any] | None = None

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, model: Any = None, **kwargs: Any
    ) -> None:
        """Every worker takes part."""
        if args.fsdp:
            options = StateDictOptions(full_state_dict=True, cpu_offload=True)
            self.weights = get_model_state_dict(model, options=options)


def _save(run: PreparedRun, result: TrainResult, weights: dict[str, Any] | None, target: Path) -> None:
    draft = target.with_name(f".{target.name}.tmp")
    for folder in (draft, target):
        shutil.rmtree(folder, ignore_errors=True)
    draft.mkdir()
    if result.attachment is not None:
        save_compression(draft, result.attachment)
        # The compressor's weights have a file of their own.
        result.attachment.detach()
    run.model.save_pretrained(draft, state_dict=weights)
    run.processor.save_pretrained(draft)
    draft.rename(target)
