"""What images one request may bring, found out without decoding any."""

import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from vlmpress_services.errors import InvalidRequestError

# pydantic reads configurations from files and refuses what they do not name.
STRICT: Any = {"extra": "forbid"}


@dataclass(frozen=True, kw_only=True, slots=True)
class ImagesConfig:
    """Limits of the images of one request; edgevlm's own hold beside them.

    Attributes:
        max_images: In one request.
        max_image_bytes: Of one image as it comes, PNG or JPEG.
        max_pixels: Of all images of the request together.
    """

    __pydantic_config__ = STRICT
    max_images: int = 32
    max_image_bytes: int = 16 << 20
    max_pixels: int = 1 << 25


def check_images(images: Sequence[bytes], limits: ImagesConfig) -> None:
    """Reads the images' headers; one that is no image is left for the decoder to name.

    Raises:
        InvalidRequestError: The images are too many, or too large.
    """
    if len(images) > limits.max_images:
        raise InvalidRequestError(f"images: expected at most {limits.max_images}, got {len(images)}")
    largest = max(map(len, images), default=0)
    if largest > limits.max_image_bytes:
        raise InvalidRequestError(f"images: expected at most {limits.max_image_bytes} bytes each, got {largest}")
    pixels = sum(map(_num_pixels, images))
    if pixels > limits.max_pixels:
        raise InvalidRequestError(f"images: expected at most {limits.max_pixels} pixels together, got {pixels}")


def _num_pixels(data: bytes) -> int:
    # Comes with edgevlm; a server without it gets no images.
    from PIL import Image

    try:
        with Image.open(io.BytesIO(data), formats=("PNG", "JPEG")) as image:
            return image.width * image.height
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError, Image.DecompressionBombWarning):
        return 0
