"""Models, processors and samples as a run's configuration names them."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoProcessor,
    AutoTokenizer,
    PreTrainedTokenizerBase,
    TrainingArguments,
)

from stagetrain.runs.run_config import DataConfig, RunConfig
from stagetrain.samples.groups import ImageGroups, Sample, SingleRecords
from stagetrain.samples.placeholders import ImageEncoder
from vlmpress.artifact import ArtifactError, import_model_code
from vlmpress.data import load_records, open_records

_FAULTS = (ArtifactError, OSError, ValueError, KeyError, StrictDataclassError)


@dataclass(frozen=True, slots=True)
class NoImages:
    """An image processor that says it makes nothing."""

    model_input_names: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class TextProcessor:
    """A tokenizer where a processor is expected, for models without images."""

    tokenizer: PreTrainedTokenizerBase
    image_processor: NoImages = NoImages()
    image_token: str = "<image>"
    image_token_id: int = -1

    def save_pretrained(self, folder: str | Path) -> None:
        """As a processor's."""
        self.tokenizer.save_pretrained(folder)


def load_model_config(config: RunConfig) -> Any:
    """The model's configuration, with the run's changes; registers what a distribution offers for its type.

    Raises:
        ConfigError: There is no such model, or it cannot be changed so.
    """
    directory = Path(config.model)
    try:
        if directory.exists():
            import_model_code(directory)
        found = AutoConfig.from_pretrained(config.model)
    except _FAULTS as error:
        raise config.places.error(("model",), f"expected a model directory, got {_line(error)}") from error
    for name in config.model_config:
        if not hasattr(found, name):
            raise config.places.error(("model_config", name), f"expected a field of {type(found).__name__}, got {name}")
    try:
        return type(found).from_dict({**found.to_dict(), **config.model_config}) if config.model_config else found
    except _FAULTS as error:
        raise config.places.error(("model_config",), _line(error)) from error


def load_model(config: RunConfig, model_config: Any) -> Any:
    """The model, of the Auto class that knows its configuration.

    Raises:
        ConfigError: It does not load, or is not there in whole.
    """
    # Image models have a language model's class too, which would leave the images out.
    auto: Any = AutoModelForImageTextToText if sees_images(model_config) else AutoModelForCausalLM
    try:
        # What a model has and its checkpoint may lack, such as a head for training, begins the same in every run.
        torch.manual_seed(config.training.get("seed", TrainingArguments.seed))
        model, report = auto.from_pretrained(
            config.model, config=model_config, dtype=config.dtype, output_loading_info=True
        )
    except _FAULTS as error:
        raise config.places.error(("model",), f"expected a model to train, got {_line(error)}") from error
    if report["missing_keys"]:
        missing = ", ".join(sorted(report["missing_keys"])[:3])
        raise config.places.error(("model",), f"expected all weights, got none for {missing}")
    return model


def sees_images(model_config: Any) -> bool:
    """Whether it is of a model for images and text."""
    return type(model_config) in AutoModelForImageTextToText._model_mapping


def load_processor(config: RunConfig, model_config: Any) -> Any:
    """The model's processor, or a stand-in around its tokenizer for a model of text.

    Raises:
        ConfigError: It does not load.
    """
    name = config.processor or config.model
    try:
        if sees_images(model_config):
            return AutoProcessor.from_pretrained(name)
        return TextProcessor(AutoTokenizer.from_pretrained(name))
    except _FAULTS as error:
        key = "processor" if config.processor else "model"
        raise config.places.error((key,), f"expected a processor, got {_line(error)}") from error


def load_samples(data: DataConfig) -> Sequence[Sample]:
    """The samples of a file.

    Raises:
        DataError: The file is not what it should be, or no record is of the split.
    """
    split = "train" if data.split is None else data.split
    if data.group_by_image:
        return ImageGroups(load_records(data.records, data.images, split=split))
    return SingleRecords(open_records(data.records, data.images, split=split))


def tokens_of_an_image(processor: Any, samples: Sequence[Sample]) -> int | None:
    """Visual tokens of the first image found; None without images."""
    for index in range(len(samples)):
        images = samples[index].images
        if images:
            encoded = ImageEncoder(processor, 0).encode(images[:1])[0]
            return list(encoded.tokens).count(int(processor.image_token_id))
    return None


def _line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__
