"""Staged training: the one function that commands, the pipeline and workers call."""

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch.utils.data import Dataset
from transformers import PrinterCallback, ProgressCallback, TrainerCallback, TrainingArguments
from transformers.trainer_utils import SaveStrategy

from stagetrain.attaching.attachment import Attachment, attach
from stagetrain.errors import ConfigError
from stagetrain.loop import checkpoints
from stagetrain.loop.feature_cache import cache_vision_features
from stagetrain.loop.feeding import RunLength
from stagetrain.loop.learning_rates import LearningRateCurve
from stagetrain.loop.parameter_groups import check_selectors, selects
from stagetrain.loop.staging import Progress, StageEntry, borrowed, unadapted
from stagetrain.loop.trainer import MAX_SKIPPED, StageTrainer
from stagetrain.samples.batches import Batch, Batches, BatchMaker, stage_batches
from stagetrain.samples.groups import Sample
from stagetrain.samples.ordering import OrderName
from stagetrain.schedules.costs import PAPER_VISUAL_TOKENS
from stagetrain.schedules.schedule import Schedule


@dataclass(frozen=True, slots=True)
class TrainResult:
    """What a run did.

    Attributes:
        losses: Loss of every optimizer step since the run's beginning, before a resume too.
        num_steps: Optimizer steps done in all.
        resumed_from_step: Step of the checkpoint this call went on from; None: from the start.
        stages: Stages this call entered.
        skipped: A message for each sample left out since the run's beginning.
        tokens_per_second: Of each stage in this call, all ranks together; None for a stage it had no step of.
        attachment: In force on the model, where the last stage compresses: it goes on doing so, and
            `save_compression` writes what it needs.
    """

    losses: tuple[float, ...]
    num_steps: int
    resumed_from_step: int | None
    stages: tuple[StageEntry, ...]
    skipped: tuple[str, ...]
    tokens_per_second: tuple[float | None, ...]
    attachment: Attachment | None


def train(
    model: Any,
    samples: Sequence[Sample],
    collator: BatchMaker,
    schedule: Schedule,
    args: TrainingArguments,
    *,
    curve: LearningRateCurve | None = None,
    freeze: Sequence[str] = (),
    order: OrderName = "shuffled",
    eval_samples: Sequence[Sample] | None = None,
    eval_compression: str = "stage",
    num_visual_tokens: int = PAPER_VISUAL_TOKENS,
    max_skipped: int = MAX_SKIPPED,
    feature_cache_bytes: int = 0,
    processor: Any = None,
    identity: Mapping[str, Any] | None = None,
    resume_from_checkpoint: str | bool | None = None,
    callbacks: Sequence[TrainerCallback] = (),
    on_progress: Progress | None = None,
) -> TrainResult:
    """Trains `model` in place through the stages of `schedule`.

    Data, dropout, stage and learning rate are functions of (seed, step) alone, so a run that was
    killed and called again with the same arguments ends with the weights of one that was not.

    Args:
        model: A Hugging Face model that accepts the collator's batches and returns a loss.
        samples: What to train on, for example `ImageGroups`.
        collator: Draws from a sample and makes batches, for example `ConversationCollator`.
        schedule: Stages.
        args: Trainer's settings; a batch has `per_device_train_batch_size` samples.
        curve: Learning rates instead of `lr_scheduler_type`'s.
        freeze: Groups or prefixes of names of parameters that no stage trains.
        order: Of the samples; see `order_samples`.
        eval_samples: What to evaluate on when `eval_strategy` says so.
        eval_compression: "stage" or "none".
        num_visual_tokens: Of an image, for the share of visual tokens in the logs.
        max_skipped: Samples left out in the whole run before it stops.
        feature_cache_bytes: Memory for the features of a vision tower that no stage trains: each image is encoded once,
            alone. 0: images are encoded in every step.
        processor: Saved with every checkpoint.
        identity: More of what must be equal for a checkpoint to be of this run, as JSON values.
        resume_from_checkpoint: A checkpoint; True: the newest whole one in `output_dir`; False: start again; None: as
            True if checkpoints are saved and there is one.
        callbacks: More of Trainer's callbacks.
        on_progress: Called after each step with (steps done, steps in all, a note).

    Raises:
        ConfigError: There is nothing to train on, or a setting is not possible.
        PoolingUnsupportedError: A stage compresses and the model's decoder cannot.
        ScheduleError: A stage would train nothing.
        CheckpointError: The checkpoint found is damaged or of a run with other settings.
        FeatureCacheError: Features are to be kept of a tower that trains.
        DivergedError: The loss is not finite.
        TooManySkippedError: More samples were left out than `max_skipped`.
    """
    if not samples:
        raise ConfigError("training: expected at least one sample, got none")
    attachment = attach(unadapted(model)) if schedule.compresses else None
    kept = None
    try:
        with borrowed(model):
            _freeze(model, freeze)
            trainer = _trainer(
                model,
                args,
                schedule,
                samples,
                eval_samples,
                collator,
                order,
                on_progress,
                attachment=attachment,
                curve=curve,
                eval_compression=eval_compression,
                num_visual_tokens=num_visual_tokens,
                max_skipped=max_skipped,
                identity={"order": order, "cached_features": feature_cache_bytes > 0, **(identity or {})},
                processing_class=processor,
                callbacks=list(callbacks),
            )
            resume = _resume(args, resume_from_checkpoint)
            # Made behind the trainer, which has freed what any stage trains.
            with cache_vision_features(unadapted(model), feature_cache_bytes) if feature_cache_bytes else nullcontext():
                trainer.train(resume_from_checkpoint=resume)
        if schedule.kept_compression is not None:
            kept = attachment
    finally:
        if attachment is not None and kept is None:
            attachment.detach()
    return _result(trainer, kept)


def _freeze(model: Any, selectors: Sequence[str]) -> None:
    check_selectors(selectors, [name for name, _ in model.named_parameters()], "freeze")
    for name, parameter in model.named_parameters():
        if selects(selectors, name):
            parameter.requires_grad_(False)


def _trainer(
    model: Any,
    args: TrainingArguments,
    schedule: Schedule,
    samples: Sequence[Sample],
    eval_samples: Sequence[Sample] | None,
    collator: BatchMaker,
    order: OrderName,
    on_progress: Progress | None,
    **settings: Any,
) -> StageTrainer:
    evaluation = None if eval_samples is None else _eval_batches(eval_samples, collator, args)
    batches = _batches(samples, collator, schedule, args, order)
    trainer = StageTrainer(
        model, args, schedule, batches, num_samples=len(samples), eval_dataset=evaluation, **settings
    )
    if on_progress is not None:
        trainer.stage_callback.on_progress = on_progress
        trainer.remove_callback(ProgressCallback)
    trainer.remove_callback(PrinterCallback)
    return trainer


def _result(trainer: StageTrainer, kept: Attachment | None) -> TrainResult:
    return TrainResult(
        losses=tuple(trainer.losses),
        num_steps=trainer.state.global_step,
        resumed_from_step=trainer.resumed_from_step,
        stages=tuple(trainer.switch.log),
        skipped=tuple(trainer.skipped),
        tokens_per_second=trainer.throughput.by_stage(),
        attachment=kept,
    )


def _batches(
    samples: Sequence[Sample], collator: BatchMaker, schedule: Schedule, args: TrainingArguments, order: OrderName
) -> Dataset[Batch]:
    num_parts = args.gradient_accumulation_steps * args.world_size
    borders = [step * num_parts for step in schedule.borders(RunLength.of(args, len(samples)).num_steps)]
    seed = args.seed if args.data_seed is None else args.data_seed
    return stage_batches(samples, collator, schedule, borders, args.per_device_train_batch_size, seed, order)


def _eval_batches(samples: Sequence[Sample], collator: BatchMaker, args: TrainingArguments) -> Batches:
    size = min(args.per_device_eval_batch_size, len(samples))
    return Batches(samples, collator, size, -(-len(samples) // size), args.seed)


def _resume(args: TrainingArguments, wanted: str | bool | None) -> str | bool | None:
    if wanted is not None:
        return wanted
    saves = args.save_strategy != SaveStrategy.NO
    return saves and bool(checkpoints.list_checkpoints(Path(str(args.output_dir))))
