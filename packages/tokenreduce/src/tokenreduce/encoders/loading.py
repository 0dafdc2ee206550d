"""Encoders out of `save_pretrained` directories."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError
from transformers import AutoImageProcessor, AutoModel, AutoModelForImageTextToText
from transformers.utils.logging import disable_progress_bar

from tokenreduce.encoders.encoder import Encoder
from tokenreduce.encoders.towers import DEFAULT_LAYER, TowerEncoder
from tokenreduce.errors import EncoderError, TokenReduceError
from tokenreduce.families.registry import FAMILIES
from tokenreduce.reducing import VisualGrid
from tokenreduce.vision import views_of
from vlmpress.artifact import import_model_code, quantized_loader

if TYPE_CHECKING:
    from PIL import Image

TOWERS = ("clip", "clip_vision_model", "siglip", "siglip_vision_model", "siglip2", "siglip2_vision_model")
_PROCESSOR_FILES = ("preprocessor_config.json", "processor_config.json")


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class ModelEncoder:
    """The vision side of a whole vision-language model: the features DFMR would see in it.

    Attributes:
        model: A model a policy can be attached to, in eval mode.
        processor: Its image processor.
    """

    model: Any
    processor: Any

    def encode(self, images: Sequence["Image.Image"]) -> list[list[VisualGrid]]:
        """Every image's views; the images go in one by one, so that the tiles of one are known to be its own."""
        return self.run(self.prepare(images))

    def prepare(self, images: Sequence["Image.Image"]) -> Any:
        """The images as the model's inputs, one call each."""
        return [dict(self.processor([image], return_tensors="pt")) for image in images]

    @torch.no_grad()
    def run(self, inputs: Any) -> list[list[VisualGrid]]:
        """What `encode` gives, from what `prepare` gave: the vision encoder's own work."""
        try:
            return [views_of(self.model, **call) for call in inputs]
        except TokenReduceError:
            raise
        except (ValueError, RuntimeError, KeyError) as error:
            raise EncoderError(f"{type(self.model).__name__}: cannot take this image: {_line(error)}") from error


def load_encoder(directory: Path, layer: int | None = None) -> Encoder:
    """The encoder of a directory; see `tokenreduce.encoders.opening.open_encoder`, errors as there."""
    config = _config(directory)
    disable_progress_bar()
    if config.get("model_type") in TOWERS:
        model = _load(AutoModel, directory)
        # A whole CLIP or SigLIP has a text side too.
        tower = getattr(model, "vision_model", model)
        chosen = DEFAULT_LAYER if layer is None else layer
        return TowerEncoder(tower=tower, processor=_processor(directory, tower.config), layer=chosen)
    if layer is not None:
        raise EncoderError(f"layer: expected none beside {directory}, a whole model that has its own, got {layer}")
    return ModelEncoder(model=load_model(directory), processor=_processor(directory, None))


def load_model(directory: Path) -> Any:
    """The vision-language model of a directory, in eval mode; code its config names is found by entry point.

    Raises:
        ArtifactError: No installed distribution offers what the directory's config names.
        EncoderError: The directory holds no model that a policy can be attached to, or not all of its weights.
    """
    model_type = str(_config(directory).get("model_type", ""))
    if model_type not in FAMILIES:
        known = ", ".join((*TOWERS, *sorted(FAMILIES)))
        raise EncoderError(f"{directory}: expected a model of type {known}, got {model_type[:80]!r}")
    disable_progress_bar()
    import_model_code(directory)
    load_quantized = quantized_loader(directory)
    return _load(AutoModelForImageTextToText, directory) if load_quantized is None else load_quantized().eval()


def _config(directory: Path) -> dict[str, Any]:
    path = directory / "config.json"
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise EncoderError(f"{path}: expected patches:P or a model directory's config.json, got {error}") from error
    if not isinstance(config, dict):
        raise EncoderError(f"{path}: expected a JSON object, got {type(config).__name__}")
    return config


def _load(kind: Any, directory: Path) -> Any:
    try:
        model, loaded = kind.from_pretrained(directory, local_files_only=True, output_loading_info=True)
    except (OSError, ValueError, KeyError, RuntimeError, ImportError, SafetensorError) as error:
        raise EncoderError(f"{directory}: expected the directory of a vision model, got: {_line(error)}") from error
    # transformers fills in what a file lacks with random values.
    if loaded["missing_keys"]:
        missing = sorted(loaded["missing_keys"])
        raise EncoderError(f"{directory}: expected all weights, got none of {len(missing)}, such as {missing[0]}")
    return model.eval()


def _processor(directory: Path, tower_config: Any) -> Any:
    if tower_config is not None and not any((directory / name).is_file() for name in _PROCESSOR_FILES):
        return _default_processor(tower_config)
    try:
        return AutoImageProcessor.from_pretrained(directory, local_files_only=True)
    except (OSError, ValueError, KeyError, TypeError, ImportError) as error:
        raise EncoderError(f"{directory}: expected an image processor beside the model, got: {_line(error)}") from error


def _default_processor(config: Any) -> Any:
    """The processor a tower's kind has by default, at the tower's own size."""
    from transformers import CLIPImageProcessorPil, Siglip2ImageProcessorPil, SiglipImageProcessorPil

    kind = config.model_type.removesuffix("_vision_model")
    if kind == "siglip2":
        return Siglip2ImageProcessorPil(patch_size=config.patch_size, max_num_patches=config.num_patches)
    square = {"height": config.image_size, "width": config.image_size}
    if kind == "siglip":
        return SiglipImageProcessorPil(size=square)
    return CLIPImageProcessorPil(size={"shortest_edge": config.image_size}, crop_size=square)


def _line(error: Exception) -> str:
    """The first line of what can be a page."""
    return next(filter(None, str(error).splitlines()), type(error).__name__)
