"""What must be equal for a checkpoint to be of the same run."""

import dataclasses
from typing import Any

from transformers import TrainingArguments

from stagetrain.loop.feeding import RunLength
from stagetrain.loop.learning_rates import LearningRateCurve
from stagetrain.schedules.schedule import Schedule

_SETTINGS = (
    "learning_rate",
    "lr_scheduler_type",
    "lr_scheduler_kwargs",
    "warmup_steps",
    "per_device_train_batch_size",
    "gradient_accumulation_steps",
    "world_size",
    "seed",
    "data_seed",
    "optim",
    "optim_args",
    "adam_beta1",
    "adam_beta2",
    "adam_epsilon",
    "weight_decay",
    "max_grad_norm",
    "label_smoothing_factor",
    "neftune_noise_alpha",
    "bf16",
    "fp16",
)


def run_identity(
    model: Any,
    args: TrainingArguments,
    schedule: Schedule,
    curve: LearningRateCurve | None,
    num_samples: int,
    length: RunLength,
) -> dict[str, Any]:
    """Schedule, settings that change the result, samples and model, as JSON values by name."""
    settings = {f"training.{name}": _plain(getattr(args, name, None)) for name in _SETTINGS}
    return {
        **settings,
        "training.num_steps": length.num_steps,
        "learning_rates": None if curve is None else dataclasses.asdict(curve),
        "schedule": [{**dataclasses.asdict(stage), "trainable": list(stage.trainable)} for stage in schedule.stages],
        "schedule.restarts": schedule.restarts,
        "num_samples": num_samples,
        "model": type(model).__name__,
        "num_parameters": sum(value.numel() for value in model.parameters()),
        "num_trainable": sum(value.numel() for value in model.parameters() if value.requires_grad),
    }


def _plain(value: Any) -> Any:
    return getattr(value, "value", value) if not isinstance(value, dict) else str(sorted(value.items()))
