"""A TrainJob as stagetrain's configuration of a run; imports stagetrain, so import it late."""

import json
import os
import re
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from stagetrain.errors import StageTrainError
from stagetrain.runs.config_file import KeyPath, Places, read_settings
from stagetrain.runs.loading import load_model_config
from stagetrain.runs.run_config import RunConfig, read_run_config
from stagetrain.schedules.schemes import SCHEMES
from stagetrain.wire import schedule_from_proto
from vlmpress.job.v1 import job_pb2 as pb
from vlmpress.stagetrain.v1 import stagetrain_pb2
from vlmpress_services.datasets import IMAGES, RECORDS
from vlmpress_services.errors import InvalidRequestError

SETTINGS, CHECKPOINTS, TRAINED = "settings.yaml", "checkpoints", "trained"
SECTIONS = ("training", "collator", "freeze")
# Nothing that names a path or another machine, and nothing that the server sets itself.
TRAINING = (
    "activation_checkpointing", "adam_beta1", "adam_beta2", "adam_epsilon", "bf16", "data_seed",
    "dataloader_num_workers", "fp16", "fsdp", "gradient_accumulation_steps", "gradient_checkpointing",
    "label_smoothing_factor", "learning_rate", "logging_steps", "lr_scheduler_type", "max_grad_norm", "max_steps",
    "neftune_noise_alpha", "num_train_epochs", "optim", "per_device_train_batch_size", "save_steps", "tf32",
    "warmup_steps", "weight_decay",
)  # fmt: skip
DEFAULTS = {"logging_steps": 1, "save_steps": 200}


@dataclass(frozen=True, kw_only=True, slots=True)
class RunPlan:
    """Everything a run depends on; equal on every worker.

    Attributes:
        model: Directory of the model and its processor.
        dataset: Directory of the dataset artifact.
        folder: Of the run; holds SETTINGS.
        schedule: Name of a scheme, or stages as a configuration writes them.
        seed: Of new weights, data order and dropout.
    """

    model: Path
    dataset: Path
    folder: Path
    schedule: str | dict[str, Any]
    seed: int


def plan_of(job: pb.TrainJob, model: Path, dataset: Path, folder: Path) -> RunPlan:
    """The plan of a job, whose settings are written into `folder`.

    Raises:
        InvalidRequestError: Neither a scheme nor a schedule is given, or its stages are not possible.
    """
    field = job.WhichOneof("stages")
    if field is None:
        raise InvalidRequestError("stages: expected scheme or schedule, got none")
    if field == "scheme" and job.scheme not in SCHEMES:
        raise InvalidRequestError(f"scheme: expected one of {', '.join(SCHEMES)}, got {job.scheme!r:.80}")
    (folder / SETTINGS).write_text(job.settings_yaml, encoding="utf-8")
    return RunPlan(
        model=model,
        dataset=dataset,
        folder=folder,
        schedule=job.scheme if field == "scheme" else _written(job.schedule),
        seed=job.seed,
    )


def config_of(plan: RunPlan) -> RunConfig:
    """Stagetrain's configuration of a plan.

    Raises:
        InvalidRequestError: Names the field, and the line of the settings.
    """
    file = plan.folder / SETTINGS
    try:
        values, places = read_settings(str(file))
        _check_keys(values, places)
        training, packs = values.get("training", {}), values.get("collator", {}).get("pack", True)
        own: dict[str, Any] = {
            "model": str(plan.model),
            "out": str(plan.folder / TRAINED),
            "checkpoints": str(plan.folder / CHECKPOINTS),
            "schedule": plan.schedule,
            "data": {
                "records": str(plan.dataset / RECORDS),
                "images": str(plan.dataset / IMAGES),
                "split": "train",
                "group_by_image": packs is not False,
            },
            **{f"training.{name}": value for name, value in DEFAULTS.items() if name not in training},
            "training.seed": plan.seed,
            "training.save_total_limit": 2,
            "training.disable_tqdm": True,
            "training.dataloader_pin_memory": False,
            # Else Trainer takes a worker without a GPU for a run of its own.
            "training.use_cpu": _on_cpu(),
        }
        return read_run_config(str(file), [f"{name}={json.dumps(value)}" for name, value in own.items()])
    except StageTrainError as error:
        raise request_error(error, plan) from error


def check_plan(plan: RunPlan) -> None:
    """Refuses what the model's configuration and the settings alone show to be impossible.

    Raises:
        InvalidRequestError: Names the field, and the line of the settings.
    """
    config = config_of(plan)
    try:
        num_layers = load_model_config(config).get_text_config().num_hidden_layers
        # How many visual tokens an image has shows when one is read.
        config.schedule_for(num_layers, sys.maxsize)
    except StageTrainError as error:
        raise request_error(error, plan) from error


def request_error(error: StageTrainError, plan: RunPlan) -> InvalidRequestError:
    """The error about a configuration as one about the job's fields."""
    text = str(error).replace(str(plan.folder / SETTINGS), "settings_yaml")
    # What the server added to the settings has no line there.
    match = re.fullmatch(r"override '[a-z_.]+=.*?': (\w+.*)", text, re.DOTALL)
    return InvalidRequestError(text if match is None else match[1])


def _check_keys(values: dict[str, Any], places: Places) -> None:
    for section in ("training", "collator"):
        if not isinstance(values.get(section, {}), dict):
            raise places.error((section,), f"expected a mapping, got {values[section]!r:.80}")
    _check_names(values, (), SECTIONS, places)
    _check_names(values.get("training", {}), ("training",), TRAINING, places)


def _check_names(found: dict[str, Any], path: KeyPath, known: tuple[str, ...], places: Places) -> None:
    for name in found:
        if name not in known:
            raise places.error((*path, name), f"expected some of {', '.join(known)}, got {name!r:.80}")


def _written(schedule: stagetrain_pb2.StageSchedule) -> dict[str, Any]:
    """A schedule as a configuration writes it."""
    try:
        checked = schedule_from_proto(schedule)
    except StageTrainError as error:
        raise InvalidRequestError(f"schedule: {error}") from error
    stages = []
    for stage in checked.stages:
        fields: dict[str, Any] = {
            "fraction": stage.fraction,
            "trainable": list(stage.trainable),
            "learning_rate_scale": stage.learning_rate_scale,
            "batch_size_scale": stage.batch_size_scale,
        }
        if (setting := stage.compression) is not None:
            fields |= {"compressor": setting.compressor, "layer": setting.layer, "stride": setting.stride}
        stages.append(fields)
    return {"name": checked.name or "custom", "restarts": checked.restarts, "stages": stages}


def _on_cpu() -> bool:
    # Ray Train says which device a worker has; one without any may still see those of others.
    return os.environ.get("ACCELERATE_TORCH_DEVICE", "cuda" if torch.cuda.is_available() else "cpu") == "cpu"
