"""An encoder by its name, and image files put through it."""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from tokenreduce.encoders.encoder import Encoder
from tokenreduce.encoders.images import check_pillow, open_image
from tokenreduce.encoders.loading import load_encoder
from tokenreduce.encoders.patches import PATCHES, patch_encoder
from tokenreduce.reducing import VisualGrid

BATCH_SIZE = 8


def open_encoder(name: str, layer: int | None = None) -> Encoder:
    """The encoder of a name: "patches:P", "patches:P:SIDE", "patches:P:keep", or a `save_pretrained` directory.

    Args:
        name: P is a patch's side and SIDE that of the square an image is scaled to (24 * P by default), in
            pixels; with "keep" it keeps its aspect. A directory holds a CLIP, SigLIP or SigLIP2 model, whole
            or its tower alone, or a whole vision-language model that a policy can be attached to.
        layer: Hidden state of a tower alone, -2 by default; a vision-language model takes its own.

    Raises:
        EncoderError: The name or the directory is none of these, or `layer` is out of range.
        ExtraMissingError: Pillow is not installed.
    """
    check_pillow()
    if name.startswith(PATCHES):
        return patch_encoder(name)
    return load_encoder(Path(name), layer)


def encode_files(
    encoder: Encoder, paths: Sequence[Path], on_progress: Callable[[int, int], None] | None = None
) -> Iterator[list[VisualGrid]]:
    """Every image's views, a few files opened at a time.

    Raises:
        ImageError: A file is no whole image.
        EncoderError: The encoder cannot take one.
    """
    for start in range(0, len(paths), BATCH_SIZE):
        images = [open_image(path) for path in paths[start : start + BATCH_SIZE]]
        yield from encoder.encode(images)
        if on_progress is not None:
            on_progress(start + len(images), len(paths))
