"""Raw patches of pixels as features."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

from tokenreduce.errors import EncoderError
from tokenreduce.reducing import VisualGrid

if TYPE_CHECKING:
    from PIL import Image

PATCHES = "patches:"
# Of the 24 x 24 grid of LLaVA-1.5, which the paper's numbers are for.
NUM_PATCHES = 24 * 24
MAX_PATCH_SIZE, MAX_IMAGE_PX = 128, 4096


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


def patch_encoder(name: str) -> PatchEncoder:
    """The encoder of "patches:P", "patches:P:SIDE" or "patches:P:keep"; see `tokenreduce.encoders.opening`."""
    size, _, fit = name.removeprefix(PATCHES).partition(":")
    numbers = [size] if fit in ("", "keep") else [size, fit]
    if not all(number.isdecimal() and len(number) < 6 for number in numbers):
        raise EncoderError(f"encoder: expected patches:P, patches:P:SIDE or patches:P:keep, got {name!r}")
    if fit == "keep":
        return PatchEncoder(patch_size=int(size), image_px=None)
    return PatchEncoder(patch_size=int(size), image_px=int(fit) if fit else math.isqrt(NUM_PATCHES) * int(size))
