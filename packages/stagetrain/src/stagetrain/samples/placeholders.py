"""What an image becomes: tokens in the sequence, and tensors for the vision tower."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from stagetrain.errors import ImageUnreadableError, SampleError
from stagetrain.samples.images import read_image

_OF_TEXT = {"input_ids", "attention_mask", "token_type_ids", "mm_token_type_ids"}
_NUM_IMAGES = "batch_num_images"
"""LLaVA-OneVision: images of each prompt. One alone is cut into tiles; several are not."""

_TILES_DIM = 5
"""Dimensions of pixel values that have a dimension of tiles behind that of images."""


@dataclass(frozen=True, slots=True)
class EncodedImage:
    """An image as the processor gives it.

    Attributes:
        tokens: What its mark becomes in the sequence.
        tensors: Arguments of the model; the first dimension is of images, tiles or patches.
    """

    tokens: tuple[int, ...]
    tensors: dict[str, torch.Tensor]


class ImageEncoder:
    """Runs a processor on images, one by one; keeps what fits into `limit_bytes`.

    Args:
        processor: A Hugging Face processor with `image_token`.
        limit_bytes: Memory for tensors of images.
    """

    def __init__(self, processor: Any, limit_bytes: int) -> None:
        self._processor = processor
        self._limit_bytes = limit_bytes
        self._size_bytes = 0
        self._kept: dict[tuple[Path, bool], EncodedImage] = {}
        self._minds_company = _NUM_IMAGES in processor.image_processor.model_input_names

    def encode(self, paths: Sequence[Path]) -> tuple[EncodedImage, ...]:
        """The images of one conversation.

        Raises:
            ImageUnreadableError: Names the file that is missing, no image, or not to the processor's liking.
        """
        alone = len(paths) == 1 or not self._minds_company
        return tuple(self._get(path, alone) for path in paths)

    def merge(self, rows: Sequence[Sequence[EncodedImage]]) -> dict[str, torch.Tensor]:
        """Tensors of the images of all rows, in order; none without images.

        Raises:
            SampleError: Images differ in shape where the model needs them equal.
        """
        images = [image.tensors for row in rows for image in row]
        if not images:
            return {}
        merged = {name: _concatenated(name, [image[name] for image in images]) for name in images[0]}
        if self._minds_company:
            merged[_NUM_IMAGES] = torch.tensor([len(row) for row in rows if row])
        return merged

    def _get(self, path: Path, alone: bool) -> EncodedImage:
        image = self._kept.get((path, alone))
        if image is None:
            image = self._encode(path, alone)
            size_bytes = sum(value.nbytes for value in image.tensors.values())
            if self._size_bytes + size_bytes <= self._limit_bytes:
                self._kept[path, alone] = image
                self._size_bytes += size_bytes
        return image

    def _encode(self, path: Path, alone: bool) -> EncodedImage:
        # Where company matters, an image beside itself is what it is beside any other.
        count = 1 if alone else 2
        text, picture = self._processor.image_token * count, read_image(path)
        try:
            inputs = self._processor(
                text=[text], images=[[picture] * count], add_special_tokens=False, return_tensors="pt"
            )
        except (ValueError, TypeError, LookupError, ArithmeticError, RuntimeError) as error:
            raise ImageUnreadableError(f"{path}: expected an image that the processor takes, got {error}") from error
        # Some tokenizers put something before or behind a mark that stands by itself.
        bare = list(self._processor.tokenizer(text, add_special_tokens=False)["input_ids"])
        first = bare.index(self._processor.image_token_id)
        length = (inputs["input_ids"].shape[1] - len(bare) + count) // count
        tokens = inputs["input_ids"][0, first : first + length].tolist()
        tensors = {name: value for name, value in inputs.items() if name not in _OF_TEXT | {_NUM_IMAGES}}
        return EncodedImage(tuple(tokens), {name: value[: len(value) // count] for name, value in tensors.items()})

    def __getstate__(self) -> dict[str, object]:
        return {**self.__dict__, "_kept": {}, "_size_bytes": 0}


def _concatenated(name: str, values: Sequence[torch.Tensor]) -> torch.Tensor:
    if values[0].dim() == _TILES_DIM:
        most = max(value.shape[1] for value in values)
        padding = [value.new_zeros(1, most - value.shape[1], *value.shape[2:]) for value in values]
        values = [torch.cat(parts, 1) for parts in zip(values, padding, strict=True)]
    shapes = {tuple(value.shape[1:]) for value in values}
    if len(shapes) > 1:
        raise SampleError(f"{name}: expected images that the processor gives one shape, got {sorted(shapes)}")
    return torch.cat(list(values))
