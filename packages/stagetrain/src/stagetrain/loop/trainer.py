"""Trainer that goes through the stages of a schedule."""

import logging
import math
from collections.abc import Iterator, Mapping
from contextlib import nullcontext
from typing import Any, cast

import torch
from accelerate.utils import gather_object
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.data import DataLoader, Dataset
from transformers import TrainingArguments

from stagetrain.attaching.attachment import Attachment, attach
from stagetrain.errors import ConfigError, DivergedError, TooManySkippedError
from stagetrain.loop.checkpointing import CheckpointingTrainer
from stagetrain.loop.feeding import (
    EvalSampler,
    RunLength,
    TrainSampler,
    batch_loader,
    empty_batch,
    num_answer_tokens,
    part_seed,
)
from stagetrain.loop.identity import run_identity
from stagetrain.loop.learning_rates import LearningRateCurve
from stagetrain.loop.loss_shares import num_images, share_of_loss
from stagetrain.loop.stage_callback import StageCallback
from stagetrain.loop.stage_rates import Factor, check_any_scheduler, stage_factors
from stagetrain.loop.staging import StageSwitch, unadapted
from stagetrain.loop.throughput import Throughput
from stagetrain.samples.batches import SKIPPED, Batch
from stagetrain.schedules.costs import PAPER_VISUAL_TOKENS, visual_token_count
from stagetrain.schedules.schedule import Schedule

_LOGGER = logging.getLogger(__name__)

MAX_SKIPPED = 100
"""Samples left out before a run stops."""

_SHOWN = 3


class StageTrainer(CheckpointingTrainer):
    """`Trainer` with ready batches by step, stages, and checkpoints that a killed run goes on from bit for bit.

    The stage, the data, the learning rate and random state follow from the optimizer step alone. The loss of a step is
    the mean over the answer tokens of all its micro-batches and ranks, whatever the model's class. Of what a model
    names `auxiliary_loss` in its outputs, which its loss has in it too, it is the mean over their images.

    Args:
        model: A Hugging Face model that accepts the batches and returns a loss that is a mean over answer tokens.
        args: Trainer's settings.
        schedule: The stages.
        train_dataset: Item i is the i-th batch of the run (`stagetrain.loop.feeding` says whose it is): tensors, and
            under "skipped" messages about samples left out.
        num_samples: Samples that the batches are made of, for the length of an epoch; by default one epoch is all
            items.
        attachment: Handle on the model's compression; made here when a stage compresses and none is given.
        curve: Learning rates instead of `lr_scheduler_type`'s.
        eval_compression: "stage": evaluate as the stage compresses; "none": uncompressed.
        num_visual_tokens: Of an image, for the share of visual tokens in the logs.
        max_skipped: Samples left out in the whole run before it stops.
        identity: More of what must be equal for a checkpoint to be of this run, as JSON values.
        **rest: Trainer's own.

    Raises:
        ConfigError: A setting that would take the run from its steps.
        PoolingUnsupportedError: A stage compresses and the model cannot.
        ScheduleError: A stage would train nothing.
    """

    loss_is_scaled_for_ga = True

    def __init__(
        self,
        model: Any,
        args: TrainingArguments,
        schedule: Schedule,
        train_dataset: Dataset[Batch],
        *,
        num_samples: int | None = None,
        attachment: Attachment | None = None,
        curve: LearningRateCurve | None = None,
        eval_compression: str = "stage",
        num_visual_tokens: int = PAPER_VISUAL_TOKENS,
        max_skipped: int = MAX_SKIPPED,
        identity: Mapping[str, Any] | None = None,
        **rest: Any,
    ) -> None:
        num_items = len(cast(Any, train_dataset))
        _check(args, eval_compression)
        if num_samples is None:
            num_samples = num_items * args.per_device_train_batch_size
        self.length = RunLength.of(args, num_samples)
        num_needed = self.length.num_steps * args.gradient_accumulation_steps * args.world_size
        if num_items < num_needed:
            raise ConfigError(
                f"training: expected {num_needed} batches for {self.length.num_steps} steps, got {num_items}"
            )
        torch.manual_seed(args.seed)  # of a compressor with parameters, made when it is set
        if attachment is None and schedule.compresses:
            attachment = attach(unadapted(model))
        self.switch = StageSwitch(model, schedule, self.length.num_steps, attachment)
        self.throughput = Throughput(len(schedule.stages))
        self._schedule, self._curve, self._num_samples = schedule, curve, num_samples
        self._eval_compression, self._max_skipped = eval_compression, max_skipped
        self._num_visual_tokens = num_visual_tokens
        self._num_parts = self._part = self._num_images = self._num_flop_parameters = 0
        self._step_loss: torch.Tensor | None = None
        args.remove_unused_columns = False
        if args.ddp_find_unused_parameters is None:
            args.ddp_find_unused_parameters = True
        own = run_identity(model, args, schedule, curve, num_samples, self.length) | dict(identity or {})
        super().__init__(own, model, args, train_dataset=train_dataset, **rest)
        # A batch is not cut into parts for several devices: images and rows differ in number.
        self.args._n_gpu = 1
        self._train_batch_size = self.args.per_device_train_batch_size
        # The loss is scaled here; models need not know of Trainer's own count.
        self.model_accepts_loss_kwargs = False
        self.stage_callback = StageCallback(self.switch, self.throughput, self.losses)
        self.add_callback(self.stage_callback)

    # Batches

    def get_train_dataloader(self) -> DataLoader[Batch]:
        """This rank's batches of the epoch."""
        sampler = TrainSampler(self.args, self.length, lambda: self.state.global_step)
        return batch_loader(cast(Any, self.train_dataset), sampler, self.args)

    def get_eval_dataloader(self, eval_dataset: Any = None) -> DataLoader[Batch]:
        """This rank's share of the evaluation's ready batches."""
        if isinstance(eval_dataset, str):
            eval_dataset = cast(Any, self.eval_dataset)[eval_dataset]
        dataset = self.eval_dataset if eval_dataset is None else eval_dataset
        return batch_loader(cast(Any, dataset), EvalSampler(self.args, len(cast(Any, dataset))), self.args)

    def num_examples(self, dataloader: DataLoader[Any]) -> int:
        """Samples, not batches."""
        if dataloader.dataset is self.train_dataset:
            return self._num_samples
        return len(cast(Any, dataloader.dataset)) * self.args.per_device_eval_batch_size

    def get_batch_samples(
        self, epoch_iterator: Iterator[Any], num_batches: int, device: torch.device
    ) -> tuple[list[Any], torch.Tensor | None]:
        """The step's micro-batches, and its number of answer tokens over all ranks."""
        self.throughput.start()
        batches = [batch for _, batch in zip(range(num_batches), epoch_iterator, strict=False)]
        messages = [str(message) for batch in batches for message in batch.pop(SKIPPED, [])]
        batches = [batch if "input_ids" in batch else empty_batch() for batch in batches]
        self._num_parts, self._part, self._step_loss = len(batches), 0, None
        counts = torch.tensor(
            [
                sum(num_answer_tokens(batch) for batch in batches),
                sum(batch["input_ids"].numel() for batch in batches),
                len(messages),
                sum(num_images(batch) for batch in batches),
            ],
            device=device,
        )
        num_answers, num_tokens, num_skipped, self._num_images = self.accelerator.reduce(counts, "sum").tolist()
        self.throughput.read(num_tokens)
        if num_skipped:
            self._count_skipped(messages)
        return batches, torch.tensor(max(1, num_answers), device=device)

    def _count_skipped(self, messages: list[str]) -> None:
        new = gather_object(messages)
        self.skipped += new
        if self.is_world_process_zero():
            for message in new:
                _LOGGER.warning("left out: %s", message)
        if len(self.skipped) > self._max_skipped:
            raise TooManySkippedError(
                f"training: step {self.state.global_step}: expected at most {self._max_skipped} samples left out, got"
                f" {len(self.skipped)}: {'; '.join(self.skipped[-_SHOWN:])}"
            )

    # Steps

    def create_scheduler(self, num_training_steps: int, optimizer: Any = None) -> Any:
        """The run's one schedule, or one for each stage, times the stage's scale."""
        curve = self._curve
        if curve is None:
            base = super().create_scheduler(num_training_steps, optimizer)
            if not isinstance(base, LambdaLR):
                check_any_scheduler(self._schedule, str(self.args.lr_scheduler_type))
                return base

        def factors_of(num_steps: int) -> list[Factor]:
            if curve is not None:
                return [lambda step: curve.factor(step, num_steps) for _ in cast(Any, self.optimizer).param_groups]
            self.lr_scheduler = None
            return list(cast(Any, super(StageTrainer, self).create_scheduler(num_steps, optimizer)).lr_lambdas)

        factors = stage_factors(self._schedule, num_training_steps, factors_of)
        self.lr_scheduler = LambdaLR(cast(Any, self.optimizer), factors)
        self._created_lr_scheduler = True
        return self.lr_scheduler

    def training_step(self, model: Any, inputs: Any, num_items_in_batch: Any = None) -> torch.Tensor:
        """Forward and backward of one micro-batch; after the last one the step's loss is kept."""
        step = self.state.global_step
        torch.manual_seed(part_seed(self.args.seed, step, self._part * self.args.world_size + self.args.process_index))
        loss = super().training_step(model, inputs, num_items_in_batch)
        self._part += 1
        self._step_loss = loss if self._step_loss is None else self._step_loss + loss
        if self._part == self._num_parts:
            value = self.accelerator.reduce(self._step_loss, "mean").item()
            if not math.isfinite(value):
                raise DivergedError(f"training: step {step}: expected a finite loss, got {value}")
            self.losses.append(value)
        return loss

    def compute_loss(
        self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """In training this micro-batch's share of the step's loss."""
        in_training = num_items_in_batch is not None
        own = num_answer_tokens(inputs) * self.args.world_size if in_training else 0
        images = num_images(inputs) * self.args.world_size / max(1, self._num_images)
        loss, outputs = super().compute_loss(model, inputs, return_outputs=True)
        if in_training:
            loss = share_of_loss(loss, outputs, own and own / num_items_in_batch, images)
        return (loss, outputs) if return_outputs else loss

    def floating_point_ops(self, inputs: Any) -> int:
        """As Trainer counts, but walks the parameters once."""
        if not self._num_flop_parameters and hasattr(self.model, "num_parameters"):
            self._num_flop_parameters = cast(Any, self.model).num_parameters(exclude_embeddings=True)
        return 6 * int(inputs["input_ids"].numel()) * self._num_flop_parameters

    def train(self, resume_from_checkpoint: str | bool | None = None, *args: Any, **kwargs: Any) -> Any:
        """As Trainer's.

        Raises:
            CheckpointError: The checkpoint is damaged, of another run, or not there.
            DivergedError: The loss is not finite.
            TooManySkippedError: More samples were left out than `max_skipped`.
        """
        hook = cast(Any, self.model).register_forward_hook(_reachable, with_kwargs=True)
        try:
            return super().train(resume_from_checkpoint, *args, **kwargs)
        finally:
            hook.remove()

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        """As Trainer's, compressed as the stage or not at all."""
        with self.switch.without_compression() if self._eval_compression == "none" else nullcontext():
            return super().evaluate(*args, **kwargs)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Adds the stage, its compression (layer -1 and stride 1: none) and throughput to training logs."""
        if "loss" in logs and self.switch.log:
            entry = self.switch.log[-1]
            setting = entry.stage.compression
            num_layers = cast(Any, self.model).config.get_text_config().num_hidden_layers
            kept = visual_token_count(num_layers, self._num_visual_tokens, setting)
            logs["stage"] = float(entry.index + 1)
            logs["compression_layer"] = -1.0 if setting is None else float(setting.layer)
            logs["compression_stride"] = 1.0 if setting is None else float(setting.stride)
            logs["visual_tokens_kept"] = kept / (num_layers * self._num_visual_tokens)
            logs["tokens_per_second"] = self.throughput.recent(forget=True)
            logs["skipped_samples"] = float(len(self.skipped))
        super().log(logs, start_time)


def _reachable(module: Any, args: Any, kwargs: Any, outputs: Any) -> Any:
    """Ties one parameter that trains to a loss that perhaps none has a part in, such as a text-only batch's.

    With several processes the others wait for this one's gradients, which begin with any of them.
    """
    loss = outputs.get("loss") if isinstance(outputs, dict) else None
    if loss is None or not torch.is_grad_enabled() or (loss.requires_grad and not torch.distributed.is_initialized()):
        return None
    smallest = min((value for value in module.parameters() if value.requires_grad), key=torch.Tensor.numel)
    outputs["loss"] = loss + 0.0 * smallest.sum()
    return outputs


def _check(args: TrainingArguments, eval_compression: str) -> None:
    if args.auto_find_batch_size or args.ignore_data_skip:
        name = "auto_find_batch_size" if args.auto_find_batch_size else "ignore_data_skip"
        raise ConfigError(f"training: {name}: expected false, for a step's data follows from the step, got true")
    if torch.distributed.is_initialized() and torch.distributed.get_world_size() != args.world_size:
        # Trainer leaves the others alone on a CPU, unless told that it is one.
        raise ConfigError(
            f"training: use_cpu: expected true for {torch.distributed.get_world_size()} processes without GPUs, got"
            f" {args.use_cpu}: each would train alone"
        )
    if eval_compression not in ("stage", "none"):
        raise ConfigError(f"training: eval_compression: expected stage or none, got {eval_compression!r}")
