"""Checks and decodes an image from outside before any model sees it."""

import io

import numpy as np
from PIL import Image, ImageOps

from edgevlm.errors import ImageError

MAX_IMAGE_PIXELS = 1 << 25
"""Largest width x height that is decoded: 100 MB as RGB."""


def decode_image(data: bytes, *, max_pixels: int = MAX_IMAGE_PIXELS) -> Image.Image:
    """One upright RGB image from PNG or JPEG bytes.

    Raises:
        ImageError: Another format, too many pixels, animated, truncated or damaged.
    """
    try:
        image = Image.open(io.BytesIO(data), formats=("PNG", "JPEG"))
    except Image.DecompressionBombError as error:
        raise ImageError(f"image: expected at most {max_pixels} pixels, got {error}") from error
    except (OSError, SyntaxError, ValueError) as error:
        raise ImageError(f"image: expected PNG or JPEG bytes, got {len(data)} bytes of another format") from error
    if image.width * image.height > max_pixels:
        raise ImageError(f"image: expected at most {max_pixels} pixels, got {image.width} x {image.height}")
    if getattr(image, "is_animated", False) and image.format == "PNG":
        raise ImageError(f"image: expected a still image, got {getattr(image, 'n_frames', 0)} frames")
    try:
        image.load()
        return upright_rgb(image)
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise ImageError(f"image: expected complete {image.format} data, got {error}") from error


def upright_rgb(image: Image.Image) -> Image.Image:
    """The image turned as its EXIF orientation says, as 8-bit RGB (alpha dropped, 16 bits scaled down)."""
    upright = ImageOps.exif_transpose(image)
    if upright.mode.startswith("I"):
        # Pillow clips 16-bit grey to white when it converts.
        upright = Image.fromarray((np.asarray(upright).astype(np.uint32) >> 8).astype(np.uint8))
    return upright.convert("RGB")
