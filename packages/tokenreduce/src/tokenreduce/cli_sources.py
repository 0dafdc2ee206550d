"""Where a command's features come from: a file of features, or images and an encoder."""

from collections.abc import Iterator, Sequence
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from tokenreduce.encoders.opening import encode_files, open_encoder
from tokenreduce.errors import FeatureError
from tokenreduce.reducing import VisualGrid
from vlmpress.cli import UserError, progress


def read_views(
    features: Path | None, encoder: str | None, layer: int | None, images: Sequence[Path]
) -> Iterator[tuple[str | None, VisualGrid]]:
    """Every view with the image file it is of; None for features from a file.

    Raises:
        UserError: Not exactly one source, or an option that the other source has.
        FeatureError: The file holds no features.
        ImageError, EncoderError: As in `tokenreduce.encoders.opening`.
    """
    if (features is None) == (encoder is None):
        raise UserError("expected either --features FILE or --encoder DIR IMAGES...")
    if features is not None:
        if layer is not None:
            raise UserError("--layer: expected --encoder with it, got --features")
        yield from ((None, VisualGrid(features=grid)) for grid in read_features(features))
        return
    if not images:
        raise UserError("IMAGES: expected at least one image file beside --encoder, got none")
    assert encoder is not None
    opened = open_encoder(encoder, layer)
    with progress("encode") as bar:
        for path, views in zip(images, encode_files(opened, images, bar.update), strict=True):
            yield from ((str(path), view) for view in views)


def read_features(path: Path) -> Tensor:
    """The tensor `features` [B, H, W, D] of a safetensors file that holds nothing else.

    Raises:
        FeatureError: The file is something else.
    """
    try:
        tensors = load_file(path)
    except SafetensorError as error:
        raise FeatureError(f"{path}: expected a safetensors file, got {error}") from error
    if list(tensors) != ["features"]:
        raise FeatureError(f"{path}: expected one tensor named 'features', got {sorted(tensors)[:8]}")
    features = tensors["features"]
    if features.ndim != 4 or 0 in features.shape:
        raise FeatureError(f"{path}: expected features of a non-empty [B, H, W, D], got shape {list(features.shape)}")
    return features
