"""Image files."""

from pathlib import Path

from PIL import Image

from verbdistill.errors import BatchError


def read_image(path: Path) -> Image.Image:
    """An image file's pixels, RGB.

    Raises:
        BatchError: It is missing or no image.
    """
    try:
        with Image.open(path) as file:
            return file.convert("RGB")
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise BatchError(f"{path}: expected a readable image, got {error}") from error
