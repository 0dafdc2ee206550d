"""Image files opened with care: whatever is wrong with one is an ImageError that names it."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import TYPE_CHECKING

from tokenreduce.errors import ExtraMissingError, ImageError

if TYPE_CHECKING:
    from PIL import Image

MAX_PIXELS = 1 << 26
"""Largest width x height that is decoded: 200 MB as RGB."""

FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF")


def check_pillow() -> None:
    """Raises ExtraMissingError unless Pillow is installed."""
    if importlib.util.find_spec("PIL") is None:
        raise ExtraMissingError("images: need Pillow; pip install 'vlmpress-tokenreduce[images]'")


def open_image(path: Path, *, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """The file's image, upright as its EXIF orientation says, 8-bit RGB; the first frame of an animation.

    Raises:
        ImageError: No image file of a known format, damaged, truncated, or of more than `max_pixels`.
        ExtraMissingError: Pillow is not installed.
        OSError: The file cannot be opened.
    """
    check_pillow()
    from PIL import Image, ImageOps, UnidentifiedImageError

    with path.open("rb") as file:
        try:
            image = Image.open(file, formats=FORMATS)
            if image.width * image.height > max_pixels:
                raise ImageError(f"{path}: expected at most {max_pixels} pixels, got {image.width} x {image.height}")
            image.load()
            return ImageOps.exif_transpose(image).convert("RGB")
        except UnidentifiedImageError as error:
            raise ImageError(f"{path}: expected an image ({', '.join(FORMATS)}), got another file") from error
        except Image.DecompressionBombError as error:
            raise ImageError(f"{path}: expected at most {max_pixels} pixels, got more") from error
        except (OSError, SyntaxError, EOFError) as error:
            raise ImageError(f"{path}: expected a whole image, got {error}") from error
