"""Checks a pack whole."""

from pathlib import Path

from quantpack.opening import open_pack
from quantpack.progress import OnProgress


def verify(directory: Path, on_progress: OnProgress | None = None) -> None:
    """Compares every byte with the manifest and decodes every frame against the index.

    Raises:
        NotAPackError: The directory is no pack.
        CorruptPackError: Names the first fault: a changed, missing or extra file, or bytes that do not decode.
    """
    _, weights = open_pack(Path(directory), check_bytes=True)
    names = weights.names
    for position, name in enumerate(names, start=1):
        weights.check(name)
        if on_progress is not None:
            on_progress(position, len(names), name)
