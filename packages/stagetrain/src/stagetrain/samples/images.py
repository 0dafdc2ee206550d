"""Reads image files as serving does."""

import warnings
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from stagetrain.errors import ImageUnreadableError


def read_image(path: Path) -> Image.Image:
    """An image file as upright 8-bit RGB: turned as EXIF says, 16 bits scaled down, alpha dropped.

    Raises:
        ImageUnreadableError: The file is missing, no image, cut off, of floating point numbers, or has more pixels
            than Pillow's limit against decompression bombs.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(path) as file:
                return _upright_rgb(file)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise ImageUnreadableError(f"{path}: expected an image, got {error}") from error


def _upright_rgb(image: Image.Image) -> Image.Image:
    upright = ImageOps.exif_transpose(image)
    if upright.mode.startswith("F"):
        raise ValueError("floating point pixels, whose range is not known")
    if upright.mode.startswith("I"):
        # Pillow clips 16-bit grey to white when it converts.
        upright = Image.fromarray((np.asarray(upright).astype(np.uint32) >> 8).astype(np.uint8))
    return upright.convert("RGB")
