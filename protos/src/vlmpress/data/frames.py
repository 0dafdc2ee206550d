"""A video as a folder of its frames."""

import re
from pathlib import Path

from vlmpress.data.errors import DataError

SUFFIXES = (".bmp", ".jpeg", ".jpg", ".png", ".webp")


def list_frames(place: str, folder: Path, max_frames: int) -> tuple[Path, ...]:
    """The frames of a video in the order of their names (numbers by value), thinned evenly to `max_frames`.

    Frame k of n is the middle one of the k-th of n equal parts.

    Raises:
        DataError: There is no such folder, or no image in it.
    """
    try:
        found = [path for path in folder.iterdir() if path.suffix.lower() in SUFFIXES and not path.name.startswith(".")]
    except (OSError, ValueError) as error:
        raise DataError(f"{place}: video: expected a folder of frames, got none at {folder}") from error
    if not found:
        raise DataError(f"{place}: video: expected images ({', '.join(SUFFIXES)}) in the folder {folder}, got none")
    frames = sorted(found, key=_natural)
    count = min(max_frames, len(frames))
    return tuple(frames[(2 * number + 1) * len(frames) // (2 * count)] for number in range(count))


def _natural(path: Path) -> tuple[list[str | int], str]:
    """Text and numbers in turn; names equal in it are told apart by themselves."""
    parts = re.split(r"([0-9]+)", path.name)
    return [int(part) if number % 2 else part for number, part in enumerate(parts)], path.name
