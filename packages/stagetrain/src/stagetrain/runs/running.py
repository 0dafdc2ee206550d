"""A run from its configuration to a model directory."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from transformers import TrainerCallback, TrainingArguments
from transformers.utils.logging import disable_progress_bar

from stagetrain.attaching.saved_setting import save_compression
from stagetrain.errors import ConfigError, ScheduleError
from stagetrain.loop import training
from stagetrain.loop.feeding import RunLength
from stagetrain.loop.parameter_groups import check_selectors, selects
from stagetrain.loop.staging import Progress
from stagetrain.loop.training import TrainResult
from stagetrain.loop.whole_weights import WholeWeights
from stagetrain.runs.loading import (
    load_model,
    load_model_config,
    load_processor,
    load_samples,
    sees_images,
    tokens_of_an_image,
)
from stagetrain.runs.run_config import RunConfig
from stagetrain.samples.conversations import ConversationCollator
from stagetrain.samples.groups import Sample
from stagetrain.schedules.costs import PAPER_VISUAL_TOKENS, StageCost, schedule_costs
from stagetrain.schedules.schedule import Schedule, Stage
from vlmpress.artifact import whole_directory


@dataclass(frozen=True, slots=True)
class StagePlan:
    """What a stage of a run will be.

    Attributes:
        stage: The stage.
        first_step: Its first optimizer step.
        num_steps: Its optimizer steps.
        samples_per_step: Samples of each, in all micro-batches and processes.
        visual_tokens: Of an image, summed over all decoder layers; None without images.
        cr_percent: Uncompressed over compressed visual tokens, percent; None without images.
        num_trainable: Parameters that train.
    """

    stage: Stage
    first_step: int
    num_steps: int
    samples_per_step: int
    visual_tokens: int | None
    cr_percent: float | None
    num_trainable: int


@dataclass(frozen=True, slots=True)
class PreparedRun:
    """A run whose parts are loaded and checked; nothing is written yet."""

    config: RunConfig
    model: Any
    processor: Any
    samples: Sequence[Sample]
    eval_samples: Sequence[Sample] | None
    collator: ConversationCollator
    schedule: Schedule
    args: TrainingArguments
    num_visual_tokens: int | None
    plan: tuple[StagePlan, ...]


def prepare(config: RunConfig) -> PreparedRun:
    """Loads and checks everything that a run needs.

    Raises:
        ConfigError: Something does not fit; names file and line.
        DataError: The records are not what they should be.
    """
    # Its bars for reading and writing a file would stand between ours and the one line of an error.
    disable_progress_bar()
    args = config.training_arguments()
    model_config = load_model_config(config)
    num_layers = model_config.get_text_config().num_hidden_layers
    processor = load_processor(config, model_config)
    collator = _collator(config, processor, args.seed)
    samples = load_samples(config.data)
    num_visual_tokens = tokens_of_an_image(processor, samples) if sees_images(model_config) else None
    stage_steps = config.stage_steps(args, len(samples))
    if stage_steps is not None and args.max_steps <= 0:
        args.max_steps = sum(stage_steps)
    schedule = config.schedule_for(num_layers, num_visual_tokens, stage_steps)
    model = load_model(config, model_config)
    check_names(config, schedule, model)
    return PreparedRun(
        config=config,
        model=model,
        processor=processor,
        samples=samples,
        eval_samples=None if config.evaluation is None else load_samples(config.evaluation),
        collator=collator,
        schedule=schedule,
        args=args,
        num_visual_tokens=num_visual_tokens,
        plan=_plan(config, schedule, model, args, len(samples), num_visual_tokens),
    )


def execute(
    run: PreparedRun,
    on_progress: Progress | None = None,
    *,
    callbacks: Sequence[TrainerCallback] = (),
    overwrite: bool = False,
) -> TrainResult:
    """Trains, then writes the model and its processor; `out` is there whole or not at all.

    Args:
        run: What `prepare` gave.
        on_progress: As for `train`.
        callbacks: More of Trainer's callbacks.
        overwrite: Replaces an `out` that is there already, once all is written.

    Raises:
        StageTrainError: As `train`.
        OSError: `out` cannot be written, or is there already.
    """
    config, whole = run.config, WholeWeights()
    result = training.train(
        run.model,
        run.samples,
        run.collator,
        run.schedule,
        run.args,
        freeze=config.freeze,
        order=config.data.order,
        eval_samples=run.eval_samples,
        eval_compression=config.eval_compression,
        max_skipped=config.max_skipped,
        feature_cache_bytes=config.feature_cache_bytes,
        identity={"model_config": config.model_config},
        callbacks=(*callbacks, whole),
        on_progress=on_progress,
        num_visual_tokens=run.num_visual_tokens or PAPER_VISUAL_TOKENS,
    )
    if run.args.should_save:
        with whole_directory(config.out, overwrite=overwrite) as draft:
            if result.attachment is not None:
                save_compression(draft, result.attachment)
                # The compressor's weights have a file of their own; the model's is that of its class.
                result.attachment.detach()
            run.model.save_pretrained(draft, state_dict=whole.weights)
            run.processor.save_pretrained(draft)
    return result


def check_names(config: RunConfig, schedule: Schedule, model: Any) -> None:
    """Refuses names of parameters that the model does not have.

    Raises:
        ConfigError: Names file and line.
    """
    names = [name for name, _ in model.named_parameters()]
    for path, selectors in [
        (("freeze",), config.freeze),
        *((("schedule", "stages", index, "trainable"), each.trainable) for index, each in enumerate(schedule.stages)),
    ]:
        try:
            check_selectors(selectors, names, "names")
        except ValueError as error:
            raise config.places.error(path, str(error)) from error


def _collator(config: RunConfig, processor: Any, seed: int) -> ConversationCollator:
    try:
        return ConversationCollator(processor, seed=seed, **config.collator)
    except ConfigError as error:
        raise config.places.error(("collator",), str(error)) from error


def _plan(
    config: RunConfig,
    schedule: Schedule,
    model: Any,
    args: TrainingArguments,
    num_samples: int,
    num_visual_tokens: int | None,
) -> tuple[StagePlan, ...]:
    borders = schedule.borders(RunLength.of(args, num_samples).num_steps)
    num_parts = args.gradient_accumulation_steps * args.world_size
    trained = [
        (name, value.numel())
        for name, value in model.named_parameters()
        if value.requires_grad and not selects(config.freeze, name)
    ]
    costs: list[StageCost | None] = [None] * len(schedule.stages)
    if num_visual_tokens is not None:
        num_layers = model.config.get_text_config().num_hidden_layers
        costs = list(schedule_costs(schedule, num_layers, num_visual_tokens))
    plans: list[StagePlan] = []
    for index, (stage, cost) in enumerate(zip(schedule.stages, costs, strict=True)):
        try:
            batch = stage.batch_size(args.per_device_train_batch_size)
        except ScheduleError as error:
            raise config.places.error(("schedule", "stages", index, "batch_size_scale"), str(error)) from error
        plans.append(
            StagePlan(
                stage=stage,
                first_step=borders[index],
                num_steps=borders[index + 1] - borders[index],
                samples_per_step=batch * num_parts,
                visual_tokens=None if cost is None else cost.visual_tokens,
                cr_percent=None if cost is None else cost.cr_percent,
                num_trainable=sum(
                    size for name, size in trained if not stage.trainable or selects(stage.trainable, name)
                ),
            )
        )
        if not plans[-1].num_trainable:
            raise config.places.error(
                ("schedule", "stages", index),
                "expected parameters that are not frozen to train, got none",
            )
    return tuple(plans)
