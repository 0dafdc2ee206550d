"""What an image becomes: tokens in the sequence, and tensors for the vision part."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from verbdistill.data.images import read_image
from verbdistill.errors import BatchError

_OF_TEXT = ("input_ids", "attention_mask", "token_type_ids", "mm_token_type_ids")
_NUM_IMAGES = "batch_num_images"
"""LLaVA-OneVision: images of each row. One alone is cut into tiles; several are not."""

_TILED = 5
"""Dimensions of pixel values [images, tiles, 3, H, W], whose tiles are padded to the most of a batch."""


@dataclass(frozen=True, slots=True)
class EncodedImage:
    """An image as the processor gives it.

    Attributes:
        tokens: What its mark becomes in the sequence.
        tensors: Arguments of the model; the first dimension counts images, tiles or patches.
    """

    tokens: list[int]
    tensors: dict[str, Tensor]


def encode_images(paths: Sequence[Path], processor: Any) -> list[EncodedImage]:
    """The images of one conversation, each through the processor by itself.

    Raises:
        BatchError: An image cannot be read or is not to the processor's liking, or there is only a tokenizer.
    """
    if not paths:
        return []
    if getattr(processor, "image_processor", None) is None:
        raise BatchError(f"{paths[0]}: expected a processor that takes images, got {type(processor).__name__}")
    in_company = len(paths) > 1 and _NUM_IMAGES in processor.image_processor.model_input_names
    return [_encode(path, processor, 2 if in_company else 1) for path in paths]


def merge_images(rows: Sequence[Sequence[EncodedImage]]) -> dict[str, Tensor]:
    """Tensors of the images of all rows, in order; none without images.

    Raises:
        BatchError: Images differ in shape where the model needs them equal.
    """
    images = [image for row in rows for image in row]
    names = images[0].tensors if images else ()
    merged = {name: _joined(name, [image.tensors[name] for image in images]) for name in names}
    if _NUM_IMAGES in merged:
        merged[_NUM_IMAGES] = torch.tensor([len(row) for row in rows if row])
    return merged


def _encode(path: Path, processor: Any, count: int) -> EncodedImage:
    """One image out of `count` equal ones: beside itself it is what it is beside any other."""
    text, picture = processor.image_token * count, read_image(path)
    try:
        inputs = processor(text=[text], images=[[picture] * count], add_special_tokens=False, return_tensors="pt")
    except (ValueError, TypeError, LookupError, ArithmeticError, RuntimeError) as error:
        raise BatchError(f"{path}: expected an image that the processor takes, got {error}") from error
    # Some tokenizers put something before or behind a mark that stands by itself.
    bare = list(processor.tokenizer(text, add_special_tokens=False)["input_ids"])
    first = bare.index(processor.image_token_id)
    length = (inputs["input_ids"].shape[1] - len(bare)) // count + 1
    tokens = inputs["input_ids"][0, first : first + length].tolist()
    tensors = {name: value[: max(1, len(value) // count)] for name, value in inputs.items() if name not in _OF_TEXT}
    return EncodedImage(tokens, tensors)


def _joined(name: str, values: list[Tensor]) -> Tensor:
    if values[0].ndim == _TILED:
        most = max(value.shape[1] for value in values)
        values = [torch.nn.functional.pad(value, (0, 0) * 3 + (0, most - value.shape[1])) for value in values]
    shapes = {tuple(value.shape[1:]) for value in values}
    if len(shapes) > 1:
        raise BatchError(f"{name}: expected images that the processor gives one shape, got {sorted(shapes)}")
    return torch.cat(values)
