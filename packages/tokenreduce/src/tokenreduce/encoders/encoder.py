"""What every encoder of image files does."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol

from tokenreduce.reducing import VisualGrid

if TYPE_CHECKING:
    from PIL import Image


class Encoder(Protocol):
    """Turns images into features."""

    def encode(self, images: Sequence[Image.Image]) -> list[list[VisualGrid]]:
        """Every image's views: one, or several where a model cuts images into tiles.

        Raises:
            EncoderError: The encoder cannot take these images.
        """
        ...
