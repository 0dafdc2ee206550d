"""Staged training on the Hugging Face Trainer."""

import dataclasses
import math
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.data import DataLoader
from transformers import PrinterCallback, Trainer, TrainingArguments

from stagetrain import checkpoints
from stagetrain.attachment import attach
from stagetrain.config import TrainConfig, learning_rate_factor
from stagetrain.errors import CheckpointError, ConfigError, DivergedError
from stagetrain.groups import Batch, BatchMaker, Sample, StepBatches
from stagetrain.schedule import Schedule
from stagetrain.staging import Progress, StageCallback, StageEntry, StageSwitch, borrowed


@dataclass(frozen=True, slots=True)
class TrainResult:
    """What a run did.

    Attributes:
        losses: Loss of every optimizer step since the run's beginning, before a resume too.
        num_steps: Optimizer steps done in all.
        resumed_from_step: Step of the checkpoint this call went on from; None: from the start.
        stages: Stages this call entered.
    """

    losses: tuple[float, ...]
    num_steps: int
    resumed_from_step: int | None
    stages: tuple[StageEntry, ...]


def train(
    model: Any,
    samples: Sequence[Sample],
    collator: BatchMaker,
    schedule: Schedule,
    config: TrainConfig,
    *,
    checkpoint_dir: Path | None = None,
    on_progress: Progress | None = None,
) -> TrainResult:
    """Trains `model` in place through the stages of `schedule`.

    Data, dropout, stage and learning rate are functions of (seed, step) alone, so a run that was
    killed and called again with the same arguments ends with the weights of one that was not.

    Args:
        model: A Hugging Face model that accepts the collator's batches and returns a loss.
        samples: What to train on, for example `ImageGroups`.
        collator: Draws from a sample and makes batches, for example `ConversationCollator`.
        schedule: Stages; those that pool need a Llava model.
        config: Settings.
        checkpoint_dir: Where checkpoints are kept, and looked for; needs `config.save_every_steps` to write any.
        on_progress: Called after each step with (steps done, steps in all, a note).

    Raises:
        ConfigError: There is nothing to train on, or checkpoints are asked for without a place.
        PoolingUnsupportedError: A stage pools and the model's decoder cannot.
        ScheduleError: A stage would train nothing.
        CheckpointError: The checkpoint found is damaged or of a run with other settings.
        DivergedError: The loss is not finite.
    """
    if not samples or (config.save_every_steps is not None and checkpoint_dir is None):
        what = "a checkpoint directory to save to" if samples else "at least one sample"
        raise ConfigError(f"training: expected {what}, got none")
    attachment = attach(model) if schedule.compresses else None
    try:
        with borrowed(model), tempfile.TemporaryDirectory() as scratch:
            switch = StageSwitch(model, schedule, config.num_steps, attachment)
            found = checkpoints.newest_checkpoint(checkpoint_dir) if checkpoint_dir is not None else None
            trainer = _StageTrainer(model, samples, collator, schedule, config, checkpoint_dir, Path(scratch))
            trainer.add_callback(StageCallback(switch, config.seed, trainer.losses, on_progress))
            trainer.train(resume_from_checkpoint=str(found[1]) if found else None)
    finally:
        if attachment is not None:
            attachment.detach()
    return TrainResult(tuple(trainer.losses), trainer.state.global_step, found[0] if found else None, tuple(switch.log))


class _StageTrainer(Trainer):
    """Trainer with batches by step, one learning rate schedule, and checkpoints that hold no pickle."""

    def __init__(
        self,
        model: Any,
        samples: Sequence[Sample],
        collator: BatchMaker,
        schedule: Schedule,
        config: TrainConfig,
        checkpoint_dir: Path | None,
        scratch: Path,
    ) -> None:
        self._config = config
        self._schedule = schedule
        self._checkpoint_dir = checkpoint_dir
        self._run = _identity(model, len(samples), schedule, config)
        self.losses: list[float] = []
        self._batches = StepBatches(samples, collator, config.images_per_step, config.num_steps, config.seed)
        super().__init__(model, _arguments(config, scratch), train_dataset=self._batches)
        self.remove_callback(PrinterCallback)
        # A batch is not cut into parts for several devices: images and rows differ in number.
        self.args._n_gpu = 1
        # The loss is a mean over the batch's answer tokens; models need not know of Trainer's own count.
        self.model_accepts_loss_kwargs = False

    def get_train_dataloader(self) -> DataLoader[Batch]:
        """One ready batch a step, in order."""
        return DataLoader(self._batches, batch_size=1, shuffle=False, collate_fn=_only)

    def create_scheduler(self, num_training_steps: int, optimizer: Any = None) -> LambdaLR:
        """The run's one schedule times the stage's factor."""
        assert self.optimizer is not None
        self.lr_scheduler = LambdaLR(self.optimizer, self._learning_rate_factor)
        self._created_lr_scheduler = True
        return self.lr_scheduler

    def training_step(self, model: Any, inputs: Any, num_items_in_batch: Any = None) -> torch.Tensor:
        """Forward and backward; keeps the loss."""
        loss = super().training_step(model, inputs, num_items_in_batch)
        value = loss.item()
        if not math.isfinite(value):
            raise DivergedError(f"training: step {self.state.global_step}: expected a finite loss, got {value}")
        self.losses.append(value)
        return loss

    def floating_point_ops(self, inputs: Any) -> int:
        """Nothing reads the count, and counting walks all parameters at every step."""
        return 0

    def _learning_rate_factor(self, step: int) -> float:
        stage = self._schedule.stages[self._schedule.stage_index(step, self._config.num_steps)]
        return learning_rate_factor(self._config, step) * stage.learning_rate_scale

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        assert self._checkpoint_dir is not None

        def fill(folder: Path) -> None:
            checkpoints.save_tensors(folder, model, self.optimizer)
            checkpoints.save_run(folder, {"run": self._run, "losses": self.losses})
            self.state.save_to_json(str(folder / "trainer_state.json"))

        checkpoints.write_checkpoint(self._checkpoint_dir, self.state.global_step, fill)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        saved = checkpoints.load_run(Path(resume_from_checkpoint))
        for name, expected in self._run.items():
            if saved.get("run", {}).get(name) != expected:
                raise CheckpointError(
                    f"{resume_from_checkpoint}: {name}: expected {expected!r}, got {saved.get('run', {}).get(name)!r}"
                )
        self.losses[:] = saved["losses"]
        checkpoints.load_model(Path(resume_from_checkpoint), cast(torch.nn.Module, self.model))

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        if checkpoint is None:
            return
        assert self.optimizer is not None
        assert self.lr_scheduler is not None
        checkpoints.load_optimizer(Path(checkpoint), self.optimizer)
        # The rate is a function of the step: the scheduler needs to know the step and nothing else.
        self.lr_scheduler.last_epoch = self.state.global_step
        for group, base in zip(self.optimizer.param_groups, self.lr_scheduler.base_lrs, strict=True):
            group["lr"] = base * self._learning_rate_factor(self.state.global_step)

    def _load_rng_state(self, checkpoint: str | None) -> None:
        """Random state follows from the step; none is saved."""


def _only(batches: list[Batch]) -> Batch:
    return batches[0]


def _arguments(config: TrainConfig, scratch: Path) -> TrainingArguments:
    return TrainingArguments(
        output_dir=str(scratch),
        max_steps=config.num_steps,
        per_device_train_batch_size=1,
        learning_rate=config.learning_rate,
        adam_beta1=config.betas[0],
        adam_beta2=config.betas[1],
        weight_decay=config.weight_decay,
        max_grad_norm=config.max_grad_norm,
        seed=config.seed,
        save_strategy="no" if config.save_every_steps is None else "steps",
        save_steps=config.save_every_steps or config.num_steps,
        logging_strategy="no",
        logging_nan_inf_filter=False,
        eval_strategy="no",
        report_to=[],
        disable_tqdm=True,
        dataloader_pin_memory=False,
        remove_unused_columns=False,
    )


def _identity(model: Any, num_samples: int, schedule: Schedule, config: TrainConfig) -> dict[str, Any]:
    """What must be equal for a checkpoint to be of the same run, as JSON values."""
    settings = dataclasses.asdict(config)
    del settings["save_every_steps"]
    return {
        "config": {**settings, "betas": list(config.betas)},
        "schedule": [{**dataclasses.asdict(stage), "trainable": list(stage.trainable)} for stage in schedule.stages],
        "num_samples": num_samples,
        "num_trainable": sum(value.numel() for value in model.parameters() if value.requires_grad),
    }
