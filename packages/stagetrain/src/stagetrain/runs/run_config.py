"""What `stagetrain train` does: a YAML file or a preset read into frozen dataclasses."""

import inspect
import math
from collections.abc import Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Literal, get_type_hints

from transformers import TrainingArguments

from stagetrain.errors import ScheduleError, StageTrainError
from stagetrain.loop.trainer import MAX_SKIPPED
from stagetrain.runs.config_file import KeyPath, Places, read_settings
from stagetrain.runs.typed_values import read_dataclass, read_mapping, read_value
from stagetrain.samples.conversations import ConversationCollator
from stagetrain.samples.ordering import OrderName
from stagetrain.schedules.schedule import Schedule, Stage
from stagetrain.schedules.schemes import SCHEMES, named_schedule
from stagetrain.schedules.setting import CompressionSetting

_OWN_TRAINING = ("output_dir", "remove_unused_columns", "resume_from_checkpoint", "auto_find_batch_size")
_SOME_LAYERS = 2
"""Decoder layers while the model's own are not known; any number shows whether a scheme is possible."""
_OWN_COLLATOR = ("self", "processor", "seed")


@dataclass(frozen=True, kw_only=True, slots=True)
class DataConfig:
    """Records to read.

    Attributes:
        records: LLaVA JSON or JSONL, or JSONL {image, question, answer}.
        images: Folder that image paths are relative to; by default the file's.
        split: Records of this split alone; null: all but those of "test".
        order: Of the samples: "shuffled", "length" or "modality_length".
        group_by_image: Records of an image are one sample, whose questions share a packed row; reads all records.
    """

    records: Path
    images: Path | None = None
    split: str | None = None
    order: OrderName = "shuffled"
    group_by_image: bool = False


@dataclass(frozen=True, kw_only=True, slots=True)
class StageConfig:
    """A stage as a file writes it; see `Stage` and `CompressionSetting`. Without layer and stride: no compression.

    Attributes:
        epochs: Passes over the samples, in every stage instead of a fraction in every stage; the run is as long as
            they take, unless `training.max_steps` says how long.
    """

    fraction: float | None = None
    epochs: float | None = None
    compressor: str | None = None
    layer: int | None = None
    stride: int | None = None
    trainable: tuple[str, ...] = ()
    learning_rate_scale: float = 1.0
    batch_size_scale: float = 1.0


@dataclass(frozen=True, kw_only=True, slots=True)
class RunConfig:
    """A training run; paths are relative to the current folder.

    Attributes:
        model: Directory of a model (save_pretrained), or a name that `from_pretrained` knows.
        model_config: Fields of the model's configuration to change, such as `reconstruction` of an edge model.
        processor: Of its processor; by default the model's.
        out: Directory to write; must not exist.
        data: What to train on.
        evaluation: What to evaluate on when `training.eval_strategy` says so.
        eval_compression: Evaluate compressed as the stage, or not at all.
        collator: Arguments of `ConversationCollator`.
        schedule: Name of a scheme; {scheme, fractions} for its stages in another split; or {stages, restarts}.
        training: Fields of `TrainingArguments`.
        dtype: Of the weights in training.
        max_skipped: Samples left out in the whole run before it stops.
        feature_cache_bytes: Memory for features of a vision tower that never trains, each image encoded once; 0: none.
        freeze: Groups ("vision", "connectors", "language") or prefixes of names of parameters that never train.
        checkpoints: Folder of checkpoints and logs, to go on from; by default beside `out`.
        places: Where the values stand.
    """

    model: str
    out: Path
    data: DataConfig
    model_config: dict[str, Any] = field(default_factory=dict)
    processor: str | None = None
    evaluation: DataConfig | None = None
    eval_compression: Literal["stage", "none"] = "stage"
    collator: dict[str, Any] = field(default_factory=dict)
    schedule: str | dict[str, Any] = "plain"
    training: dict[str, Any] = field(default_factory=dict)
    dtype: Literal["auto", "float32", "bfloat16"] = "float32"
    max_skipped: int = MAX_SKIPPED
    feature_cache_bytes: int = 0
    freeze: tuple[str, ...] = ()
    checkpoints: Path | None = None
    places: Places = field(default_factory=lambda: Places("configuration"), metadata={"key": False}, compare=False)

    @property
    def checkpoint_dir(self) -> Path:
        """Folder of checkpoints and logs."""
        return self.checkpoints or self.out.with_name(f"{self.out.name}-checkpoints")

    def training_arguments(self) -> TrainingArguments:
        """Trainer's settings.

        Raises:
            ConfigError: They do not go together.
        """
        try:
            return TrainingArguments(output_dir=str(self.checkpoint_dir), **{"report_to": [], **self.training})
        except (ValueError, TypeError, ImportError) as error:
            raise self.places.error(("training",), f"expected settings that go together, got {error}") from error

    def stage_steps(self, args: TrainingArguments, num_samples: int) -> tuple[int, ...] | None:
        """Optimizer steps that the stages' epochs of `num_samples` take, each at least one; None where none says so.

        Raises:
            ConfigError: A stage's batches are not of a whole number of samples; names file and line.
        """
        if isinstance(self.schedule, str) or "stages" not in self.schedule:
            return None
        num_parts = args.gradient_accumulation_steps * args.world_size
        steps = []
        for index, each in enumerate(self.schedule["stages"]):
            path: KeyPath = ("schedule", "stages", index)
            epochs = read_value(StageConfig, each, path, self.places).epochs
            if epochs is None:
                return None
            try:
                batch = _stage(each, path, self.places, 1.0).batch_size(args.per_device_train_batch_size) * num_parts
            except ScheduleError as error:
                raise self.places.error((*path, "batch_size_scale"), str(error)) from error
            steps.append(max(1, math.ceil(epochs * num_samples / batch)))
        return tuple(steps)

    def schedule_for(
        self, num_layers: int, num_visual_tokens: int | None, stage_steps: Sequence[int] | None = None
    ) -> Schedule:
        """The schedule for a decoder of `num_layers` and images of `num_visual_tokens` (None: no images).

        Args:
            num_layers: Of the decoder.
            num_visual_tokens: Of an image.
            stage_steps: As the method of this name gives them; without them stages of epochs have the shares that
                they come to with very many samples.

        Raises:
            ConfigError: Its layers or strides are beyond the model; names file and line.
        """
        if isinstance(self.schedule, str):
            try:
                schedule = named_schedule(self.schedule, num_layers)
            except StageTrainError as error:
                raise self.places.error(("schedule",), str(error)) from error
        else:
            schedule = _schedule(self.schedule, self.places, num_layers, stage_steps)
        for index, stage in enumerate(schedule.stages):
            setting = stage.compression
            where: KeyPath = ("schedule", "stages", index)
            if setting is None:
                continue
            if setting.layer >= num_layers:
                raise self.places.error(
                    (*where, "layer"), f"expected a layer below the decoder's {num_layers}, got {setting.layer}"
                )
            if num_visual_tokens is None or setting.stride > num_visual_tokens:
                most = "no image" if num_visual_tokens is None else f"an image's {num_visual_tokens} visual tokens"
                raise self.places.error(
                    (*where, "stride"), f"expected a stride of at most {most}, got {setting.stride}"
                )
        return schedule


def read_run_config(source: str, overrides: Sequence[str] = ()) -> RunConfig:
    """Reads and checks a YAML file or a preset, with `key=value` overrides.

    Raises:
        ConfigError: Names file and line or the override, what was expected and what came.
    """
    values, places = read_settings(source, overrides)
    config = read_dataclass(RunConfig, values, (), places)
    read_mapping(config.collator, _collator_hints(), ("collator",), places)
    hints = get_type_hints(TrainingArguments)
    names = [each.name for each in fields(TrainingArguments) if each.init and each.name not in _OWN_TRAINING]
    training = read_mapping(config.training, {name: hints[name] for name in names}, ("training",), places)
    for name in ("max_skipped", "feature_cache_bytes"):
        if getattr(config, name) < 0:
            raise places.error((name,), f"expected at least 0, got {getattr(config, name)}")
    if isinstance(config.schedule, dict):
        _schedule(config.schedule, places, _SOME_LAYERS)
        stages = config.schedule.get("stages", [])
        if "num_train_epochs" in training and any("epochs" in each for each in stages):
            raise places.error(("training", "num_train_epochs"), "expected it or epochs of stages, got both")
    elif config.schedule not in SCHEMES:
        raise places.error(("schedule",), f"expected stages or one of {', '.join(SCHEMES)}, got {config.schedule!r}")
    checked = {each.name: getattr(config, each.name) for each in fields(RunConfig)}
    return RunConfig(**{**checked, "training": training, "places": places})


def _collator_hints() -> dict[str, Any]:
    hints = get_type_hints(ConversationCollator.__init__)
    names = [name for name in inspect.signature(ConversationCollator.__init__).parameters if name not in _OWN_COLLATOR]
    return {name: hints[name] for name in names}


def _schedule(
    values: dict[str, Any], places: Places, num_layers: int, stage_steps: Sequence[int] | None = None
) -> Schedule:
    hints = {"name": str, "stages": list[Any], "scheme": str, "fractions": tuple[float, ...], "restarts": bool}
    read = read_mapping(values, hints, ("schedule",), places)
    if "scheme" in read:
        if "stages" in read:
            raise places.error(("schedule", "stages"), "expected them or a scheme, got both")
        try:
            named = named_schedule(read["scheme"], num_layers, read.get("fractions"))
            return replace(named, restarts=read.get("restarts", named.restarts))
        except StageTrainError as error:
            raise places.error(("schedule", "fractions" if "fractions" in read else "scheme"), str(error)) from error
    where: KeyPath = ("schedule", "stages")
    if not read.get("stages"):
        raise places.error(where, "expected a list of stages, got none")
    shares = _shares(read["stages"], places) if stage_steps is None else [one / sum(stage_steps) for one in stage_steps]
    stages = tuple(
        _stage(each, (*where, index), places, share)
        for index, (each, share) in enumerate(zip(read["stages"], shares, strict=True))
    )
    try:
        return Schedule(read.get("name", "custom"), stages, read.get("restarts", False))
    except ScheduleError as error:
        raise places.error(where, str(error)) from error


def _shares(stages: list[Any], places: Places) -> list[float]:
    """Fractions of stages, or the shares of the steps that their epochs take."""
    where: KeyPath = ("schedule", "stages")
    read = [read_value(StageConfig, each, (*where, index), places) for index, each in enumerate(stages)]
    for index, each in enumerate(read):
        if (each.fraction is None) == (each.epochs is None) or (each.epochs is None) != (read[0].epochs is None):
            raise places.error((*where, index), "expected a fraction in every stage, or epochs in every stage")
        if each.epochs is not None and not (each.epochs > 0 and math.isfinite(each.epochs)):
            raise places.error((*where, index, "epochs"), f"expected a positive number, got {each.epochs}")
    if read[0].fraction is not None:
        return [each.fraction for each in read]
    weights = [each.epochs / max(each.batch_size_scale, 1e-9) for each in read]
    return [weight / sum(weights) for weight in weights]


def _stage(value: Any, path: KeyPath, places: Places, fraction: float) -> Stage:
    read: StageConfig = read_value(StageConfig, value, path, places)
    if (read.layer is None) != (read.stride is None):
        raise places.error(path, "expected layer and stride together, got one of them")
    try:
        setting = None
        if read.layer is not None and read.stride is not None:
            compressor = {} if read.compressor is None else {"compressor": read.compressor}
            setting = CompressionSetting(layer=read.layer, stride=read.stride, **compressor)
        elif read.compressor is not None:
            raise places.error((*path, "compressor"), f"expected layer and stride beside it, got {read.compressor}")
        return Stage(
            fraction=fraction,
            compression=setting,
            trainable=read.trainable,
            learning_rate_scale=read.learning_rate_scale,
            batch_size_scale=read.batch_size_scale,
        )
    except ScheduleError as error:
        raise places.error(path, str(error)) from error
    except LookupError as error:
        raise places.error((*path, "compressor"), str(error)) from error
