"""What a worker of a TrainJob does; imports stagetrain and torch, so import it late."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from transformers.utils import logging as transformers_logging

from stagetrain import Schedule, StageTrainError
from stagetrain.runs.running import execute, prepare
from vlmpress_services.errors import InvalidRequestError
from vlmpress_services.jobs.training.progress import StepReport, StepReporter
from vlmpress_services.jobs.training.settings import RunPlan, config_of, request_error


@dataclass(frozen=True, kw_only=True, slots=True)
class Outcome:
    """What a run gave beside the model in its folder.

    Attributes:
        schedule: The stages as they were for this model.
        losses: Of every optimizer step, nats.
        resumed_from_step: Step of the checkpoint it went on from; None: it began anew.
        skipped: A line for each sample that was left out.
        tokens_per_second: Of each stage since then, all workers together; None for a stage without a step.
    """

    schedule: Schedule
    losses: tuple[float, ...]
    resumed_from_step: int | None
    skipped: tuple[str, ...]
    tokens_per_second: tuple[float | None, ...]


def run_plan(plan: RunPlan, *, on_progress: Callable[[StepReport], None]) -> Outcome:
    """Trains from the newest whole checkpoint of the run's folder on, alone or as one of several workers.

    Raises:
        InvalidRequestError: The plan does not fit the model.
        stagetrain.StageTrainError: The run ended on its data or its loss.
    """
    transformers_logging.set_verbosity_error()
    # A compressor's new weights must be the same on every worker, and after a restart.
    torch.manual_seed(plan.seed)
    try:
        run = prepare(config_of(plan))
    except StageTrainError as error:
        raise request_error(error, plan) from error
    if run.args.fsdp and run.args.use_cpu:
        raise InvalidRequestError("settings_yaml: training.fsdp: expected a GPU for each worker, got none")
    reporter = StepReporter(on_progress, len(run.schedule.stages))
    # A worker that dies after it has written the model is started again.
    result = execute(run, callbacks=[reporter], overwrite=True)
    return Outcome(
        schedule=run.schedule,
        losses=result.losses,
        resumed_from_step=result.resumed_from_step,
        skipped=result.skipped,
        tokens_per_second=result.tokens_per_second,
    )
