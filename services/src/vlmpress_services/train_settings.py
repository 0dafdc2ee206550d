"""The part of stagetrain's configuration that a client may set; imports stagetrain, so import it late."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import yaml
from transformers import TrainingArguments

from vlmpress_services.errors import InvalidRequestError

SECTIONS = ("training", "collator", "freeze")
# Nothing that names a path, another machine, or code to run; nor what the server sets itself.
TRAINING = frozenset(
    (
        "adam_beta1", "adam_beta2", "adam_epsilon", "average_tokens_across_devices", "bf16", "data_seed",
        "dataloader_num_workers", "fp16", "fsdp", "gradient_accumulation_steps", "gradient_checkpointing",
        "label_smoothing_factor", "learning_rate", "logging_steps", "lr_scheduler_type", "max_grad_norm", "max_steps",
        "neftune_noise_alpha", "num_train_epochs", "optim", "per_device_train_batch_size", "save_steps", "tf32",
        "warmup_ratio", "warmup_steps", "weight_decay",
    )
)  # fmt: skip
COLLATOR = frozenset(
    ("image_position", "max_length", "max_questions_per_image", "pack", "pixel_cache_bytes", "too_long")
)


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainSettings:
    """How a client wants its model trained.

    Attributes:
        training: Fields of Trainer's arguments.
        collator: Arguments of `ConversationCollator`.
        freeze: Groups or prefixes of names of parameters that no stage trains.
    """

    training: Mapping[str, Any] = field(default_factory=dict)
    collator: Mapping[str, Any] = field(default_factory=dict)
    freeze: tuple[str, ...] = ()


def parse_settings(text: str) -> TrainSettings:
    """Settings from YAML.

    Raises:
        InvalidRequestError: Names the line or the field.
    """
    try:
        found = yaml.safe_load(text) if text.strip() else {}
    except yaml.YAMLError as error:
        raise InvalidRequestError(f"settings_yaml: expected YAML, got {' '.join(str(error).split())}") from error
    fields = _mapping(found, "settings_yaml", SECTIONS)
    training = _mapping(fields.get("training") or {}, "settings_yaml: training", sorted(TRAINING))
    collator = _mapping(fields.get("collator") or {}, "settings_yaml: collator", sorted(COLLATOR))
    freeze = fields.get("freeze") or []
    if not isinstance(freeze, list) or not all(isinstance(each, str) for each in freeze):
        raise InvalidRequestError(f"settings_yaml: freeze: expected a list of names, got {freeze!r:.80}")
    return TrainSettings(training=training, collator=collator, freeze=tuple(freeze))


def _mapping(found: Any, where: str, known: Any) -> dict[str, Any]:
    if not isinstance(found, dict):
        raise InvalidRequestError(f"{where}: expected a mapping, got {type(found).__name__}")
    for name in found:
        if name not in known:
            raise InvalidRequestError(f"{where}: expected some of {', '.join(known)}, got {name!r:.80}")
    return found


def training_arguments(settings: TrainSettings, output_dir: str, seed: int) -> TrainingArguments:
    """Trainer's arguments on this worker.

    Raises:
        InvalidRequestError: A field does not fit.
    """
    fields = {"logging_steps": 1, "save_steps": 200, **settings.training}
    try:
        return TrainingArguments(
            output_dir=output_dir,
            seed=seed,
            save_strategy="steps",
            save_total_limit=2,
            logging_strategy="steps",
            report_to=[],
            disable_tqdm=True,
            dataloader_pin_memory=False,
            **fields,
        )
    except (TypeError, ValueError, ImportError) as error:
        raise InvalidRequestError(f"settings_yaml: training: {' '.join(str(error).split())}") from error
