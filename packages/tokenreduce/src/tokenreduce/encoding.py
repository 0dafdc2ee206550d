"""Images turned into features on their grid: raw patches of pixels, or what a vision tower makes of them."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch

from tokenreduce.errors import EncoderError
from tokenreduce.images import check_pillow, open_image
from tokenreduce.reducing import VisualGrid

if TYPE_CHECKING:
    from PIL import Image

PATCHES = "patches:"
# Of the 24 x 24 grid of LLaVA-1.5, which the paper's numbers are for.
NUM_PATCHES = 24 * 24
# LLaVA's: the last layer is trained for CLS, the one before still tells places apart.
DEFAULT_LAYER = -2
BATCH_SIZE = 8
MAX_PATCH_SIZE, MAX_IMAGE_PX = 128, 4096


class Encoder(Protocol):
    """Turns images into features."""

    def encode(self, images: Sequence[Image.Image]) -> list[list[VisualGrid]]:
        """Every image's views: one, or several where a model cuts images into tiles.

        Raises:
            EncoderError: The encoder cannot take these images.
        """
        ...


@dataclass(frozen=True, kw_only=True, slots=True)
class PatchEncoder:
    """Raw pixels as features: no weights, [H, W, 3 * P * P], values from 0 to 1, row by row, R G B of each pixel.

    Attributes:
        patch_size: P, side of a patch in pixels.
        image_px: Side of the square that the middle of an image is scaled to, as CLIP does; None: the whole
            image at its own aspect, in at most 576 patches.
    """

    patch_size: int
    image_px: int | None

    def __post_init__(self) -> None:
        if not 1 <= self.patch_size <= MAX_PATCH_SIZE:
            raise EncoderError(f"patches: expected a patch of 1 to {MAX_PATCH_SIZE} pixels, got {self.patch_size}")
        side = self.image_px
        if side is not None and (not self.patch_size <= side <= MAX_IMAGE_PX or side % self.patch_size):
            raise EncoderError(
                f"patches: expected a side of up to {MAX_IMAGE_PX} pixels, a multiple of {self.patch_size}, got {side}"
            )

    def encode(self, images: Sequence[Image.Image]) -> list[list[VisualGrid]]:
        """One view an image."""
        return [[VisualGrid(features=self._patches(image))] for image in images]

    def _patches(self, image: Image.Image) -> torch.Tensor:
        side = self.patch_size
        pixels = torch.from_numpy(np.asarray(self._fitted(image), dtype=np.float32) / 255)
        height, width = (length // side for length in pixels.shape[:2])
        return pixels.view(height, side, width, side, 3).permute(0, 2, 1, 3, 4).reshape(height, width, -1)

    def _fitted(self, image: Image.Image) -> Image.Image:
        from PIL import Image, ImageOps

        if self.image_px is not None:
            return ImageOps.fit(image, (self.image_px, self.image_px), Image.Resampling.BICUBIC)
        height = min(max(1, round(math.sqrt(NUM_PATCHES * image.height / image.width))), NUM_PATCHES)
        width = min(max(1, round(height * image.width / image.height)), NUM_PATCHES // height)
        return image.resize((width * self.patch_size, height * self.patch_size), Image.Resampling.BICUBIC)


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class TowerEncoder:
    """A vision tower alone: CLIP, SigLIP or SigLIP2.

    Attributes:
        tower: The vision model, in eval mode.
        processor: Its image processor.
        layer: Index into the hidden states, of which 0 is the embeddings and -1 the last layer.
    """

    tower: Any
    processor: Any
    layer: int = DEFAULT_LAYER

    def __post_init__(self) -> None:
        num_states = self.tower.config.num_hidden_layers + 1
        if not -num_states <= self.layer < num_states:
            raise EncoderError(f"layer: expected {-num_states} to {num_states - 1}, got {self.layer}")

    def encode(self, images: Sequence[Image.Image]) -> list[list[VisualGrid]]:
        """One view an image, CLS and padding dropped."""
        return self.run(self.prepare(images))

    def prepare(self, images: Sequence[Image.Image]) -> Any:
        """The images as the tower's inputs."""
        return self.processor(list(images), return_tensors="pt")

    @torch.no_grad()
    def run(self, inputs: Any) -> list[list[VisualGrid]]:
        """What `encode` gives, from what `prepare` gave: the tower's own work."""
        try:
            states = self.tower(**inputs, output_hidden_states=True).hidden_states[self.layer]
        except (ValueError, RuntimeError) as error:
            raise EncoderError(f"{type(self.tower).__name__}: cannot take these images: {error}") from error
        if "spatial_shapes" in inputs:
            shapes = [tuple(shape) for shape in inputs["spatial_shapes"].tolist()]
        else:
            patch = self.tower.config.patch_size
            shapes = [tuple(length // patch for length in inputs["pixel_values"].shape[-2:])] * len(states)
            if states.shape[1] == math.prod(shapes[0]) + 1:
                states = states[:, 1:]
        return [
            [VisualGrid(features=state[: height * width].unflatten(0, (height, width)))]
            for state, (height, width) in zip(states, shapes, strict=True)
        ]


def open_encoder(name: str, layer: int | None = None) -> Encoder:
    """The encoder of a name: "patches:P", "patches:P:SIDE", "patches:P:keep", or a `save_pretrained` directory.

    Args:
        name: P is a patch's side and SIDE that of the square an image is scaled to (24 * P by default), in
            pixels; with "keep" it keeps its aspect. A directory holds a CLIP, SigLIP or SigLIP2 model, whole
            or its tower alone, or a whole vision-language model that a policy can be attached to.
        layer: Hidden state of a tower alone, -2 by default; a vision-language model takes its own.

    Raises:
        EncoderError: The name or the directory is none of these, or `layer` is out of range.
        ExtraMissingError: Pillow is not installed.
    """
    check_pillow()
    if name.startswith(PATCHES):
        return _patch_encoder(name)
    from tokenreduce.encoder_loading import load_encoder

    return load_encoder(Path(name), layer)


def encode_files(
    encoder: Encoder, paths: Sequence[Path], on_progress: Callable[[int, int], None] | None = None
) -> Iterator[list[VisualGrid]]:
    """Every image's views, a few files opened at a time.

    Raises:
        ImageError: A file is no whole image.
        EncoderError: The encoder cannot take one.
    """
    for start in range(0, len(paths), BATCH_SIZE):
        images = [open_image(path) for path in paths[start : start + BATCH_SIZE]]
        yield from encoder.encode(images)
        if on_progress is not None:
            on_progress(start + len(images), len(paths))


def _patch_encoder(name: str) -> PatchEncoder:
    size, _, fit = name.removeprefix(PATCHES).partition(":")
    numbers = [size] if fit in ("", "keep") else [size, fit]
    if not all(number.isdecimal() and len(number) < 6 for number in numbers):
        raise EncoderError(f"encoder: expected patches:P, patches:P:SIDE or patches:P:keep, got {name!r}")
    if fit == "keep":
        return PatchEncoder(patch_size=int(size), image_px=None)
    return PatchEncoder(patch_size=int(size), image_px=int(fit) if fit else math.isqrt(NUM_PATCHES) * int(size))
