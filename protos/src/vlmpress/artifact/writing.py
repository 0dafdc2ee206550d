"""Files and directories that are there whole or not at all, and outlive a power loss."""

import errno
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO


@contextmanager
def whole_file(target: Path) -> Iterator[BinaryIO]:
    """A file to write that takes `target`'s place when the block ends; when it fails, all stays as it was."""
    make_folder(target.parent)
    # Not mkstemp, which keeps a file to its owner.
    draft = target.with_name(f".{target.name}.{os.urandom(8).hex()}.tmp")
    try:
        with draft.open("xb") as file:
            yield file
        flush(draft)
        draft.replace(target)
        flush(target.parent)
    finally:
        draft.unlink(missing_ok=True)


@contextmanager
def whole_directory(target: Path, *, overwrite: bool = False) -> Iterator[Path]:
    """A folder to fill that is renamed to `target` when the block ends; when it fails, there is none.

    Raises:
        OSError: `target` is there already and is not an empty folder; `overwrite` removes it when all is written.
    """
    make_folder(target.parent)
    draft = Path(tempfile.mkdtemp(prefix=f".{target.name}.", suffix=".tmp", dir=target.parent))
    draft.chmod(0o755)
    try:
        yield draft
        flush_tree(draft)
        if overwrite:
            shutil.rmtree(target, ignore_errors=True)
        draft.rename(target)
        flush(target.parent)
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def make_folder(path: Path) -> None:
    """Makes a folder and those above it, and has the disk hold their names; a folder that is there stays as it is."""
    if path.is_dir():
        return
    make_folder(path.parent)
    path.mkdir(exist_ok=True)
    flush(path.parent)


def flush_tree(folder: Path) -> None:
    """Has the disk hold everything in a folder, and its names."""
    for path in folder.rglob("*"):
        flush(path)
    flush(folder)


def flush(path: Path) -> None:
    """Has the disk hold a file's bytes, or a folder's names."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:
        # Some network file systems cannot sync a directory; a rename is atomic there all the same.
        if error.errno != errno.EINVAL:
            raise
    finally:
        os.close(handle)
