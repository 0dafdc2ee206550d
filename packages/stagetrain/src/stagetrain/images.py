"""Pixel values of image files, kept in memory up to a limit."""

from pathlib import Path
from typing import Any

import torch
from PIL import Image

from stagetrain.errors import ImageUnreadableError


class PixelCache:
    """Reads and preprocesses images; keeps what fits into `limit_bytes`.

    Values are kept in float16, and rounded to it whether kept or not, so that what a step sees does
    not depend on the cache. For 8-bit images the rounding is at most a thirtieth of one grey level
    in [-1, 1].
    """

    def __init__(self, image_processor: Any, limit_bytes: int) -> None:
        self._image_processor = image_processor
        self._limit_bytes = limit_bytes
        self._size_bytes = 0
        self._kept: dict[Path, torch.Tensor] = {}

    def get(self, path: Path) -> torch.Tensor:
        """Pixel values [3, H, W], float32.

        Raises:
            ImageUnreadableError: The file is missing or no image.
        """
        pixels = self._kept.get(path)
        if pixels is None:
            pixels = self._read(path)
            size_bytes = pixels.numel() * pixels.element_size()
            if self._size_bytes + size_bytes <= self._limit_bytes:
                self._kept[path] = pixels
                self._size_bytes += size_bytes
        return pixels.float()

    def _read(self, path: Path) -> torch.Tensor:
        try:
            with Image.open(path) as file:
                image = file.convert("RGB")
        except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
            raise ImageUnreadableError(f"{path}: expected an image, got {error}") from error
        values = self._image_processor(images=[image], return_tensors="pt")["pixel_values"]
        return torch.as_tensor(values)[0].to(torch.float16)
