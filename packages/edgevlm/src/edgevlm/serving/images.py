"""Checks and decodes images from outside before any model sees them."""

import io
from collections.abc import Sequence

import numpy as np
from PIL import ExifTags, Image, ImageOps

from edgevlm.errors import ImageError

MAX_IMAGE_PIXELS = 1 << 25
"""Most pixels that are decoded for one request, all its images together: 100 MB as RGB."""

MAX_IMAGES = 32
"""Most images of one request."""

MAX_ASPECT_RATIO = 200
"""Longest side over shortest: a processor that scales the shortest side up makes any longer image huge."""

_DAMAGE = (OSError, SyntaxError, ValueError, EOFError, MemoryError, OverflowError)


def decode_image(data: bytes, *, max_pixels: int = MAX_IMAGE_PIXELS) -> Image.Image:
    """One upright RGB image from PNG or JPEG bytes; its size is checked before any pixel is decoded.

    Raises:
        ImageError: Another format, no or too many pixels, too narrow, animated, truncated or damaged.
    """
    return _decoded(_opened(data, max_pixels), max_pixels)


def decode_images(
    images: Sequence[bytes | Image.Image], *, max_pixels: int = MAX_IMAGE_PIXELS, max_images: int = MAX_IMAGES
) -> list[Image.Image]:
    """Upright RGB images of one request; the sizes of all are checked before any is decoded.

    Raises:
        ImageError: As `decode_image`, or the images together are too many or too large.
    """
    if len(images) > max_images:
        raise ImageError(f"images: expected at most {max_images}, got {len(images)}")
    opened = [_opened(image, max_pixels) if isinstance(image, bytes) else image for image in images]
    num_pixels = sum(image.width * image.height for image in opened)
    if num_pixels > max_pixels:
        raise ImageError(f"images: expected at most {max_pixels} pixels together, got {num_pixels}")
    return [
        _decoded(image, max_pixels) if isinstance(given, bytes) else upright_rgb(image)
        for given, image in zip(images, opened, strict=True)
    ]


def upright_rgb(image: Image.Image) -> Image.Image:
    """The image turned as its EXIF orientation says, as 8-bit RGB (alpha dropped, 16 bits scaled down)."""
    upright = image
    if image.getexif().get(ExifTags.Base.Orientation, 1) != 1:
        upright = ImageOps.exif_transpose(image)
    if upright.mode.startswith("I"):
        # Pillow clips 16-bit grey to white when it converts.
        upright = Image.fromarray((np.asarray(upright).astype(np.uint32) >> 8).astype(np.uint8))
    if "transparency" in upright.info:
        # Pillow warns of a palette with transparency unless it becomes RGBA first.
        upright = upright.convert("RGBA")
    return upright.convert("RGB")


def _opened(data: bytes, max_pixels: int) -> Image.Image:
    """An image whose header alone has been read, and found in order."""
    if not data:
        raise ImageError("image: expected PNG or JPEG bytes, got none")
    try:
        image = Image.open(io.BytesIO(data), formats=("PNG", "JPEG"))
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise ImageError(f"image: expected at most {max_pixels} pixels, got {error}") from error
    except _DAMAGE as error:
        raise ImageError(f"image: expected PNG or JPEG bytes, got {len(data)} bytes of another format") from error
    width, height = image.size
    if width < 1 or height < 1:
        raise ImageError(f"image: expected at least 1 pixel, got {width} x {height}")
    if width * height > max_pixels:
        raise ImageError(f"image: expected at most {max_pixels} pixels, got {width} x {height}")
    if max(width, height) > MAX_ASPECT_RATIO * min(width, height):
        raise ImageError(f"image: expected sides of at most 1 to {MAX_ASPECT_RATIO}, got {width} x {height}")
    if getattr(image, "is_animated", False) and image.format == "PNG":
        raise ImageError(f"image: expected a still image, got {getattr(image, 'n_frames', 0)} frames")
    return image


def _decoded(image: Image.Image, max_pixels: int) -> Image.Image:
    try:
        image.load()
        return upright_rgb(image)
    except (*_DAMAGE, Image.DecompressionBombError) as error:
        raise ImageError(f"image: expected complete {image.format} data, got {error}") from error
