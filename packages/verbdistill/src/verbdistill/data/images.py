"""Image files as models get to see them."""

import warnings
from pathlib import Path

from PIL import Image, ImageOps

from verbdistill.errors import BatchError


def read_image(path: Path) -> Image.Image:
    """An image file's pixels, upright as its EXIF data says, 8-bit RGB.

    Raises:
        BatchError: It is missing, no image, of floating-point numbers, or larger than Pillow's limit.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(path) as file:
                return _rgb(ImageOps.exif_transpose(file))
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise BatchError(f"{path}: expected a readable image, got {error}") from error


def _rgb(image: Image.Image) -> Image.Image:
    if image.mode == "F":
        raise ValueError("floating-point pixels, whose range is not known")
    if image.mode.startswith("I"):
        # Pillow would clip 16 bits to white.
        image = image.convert("I").point(lambda value: value * (1 / 256)).convert("L")
    return image.convert("RGB")
