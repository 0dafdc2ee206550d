"""Folders for what is being written, removed when their writer ends, however it ends."""

import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from vlmpress.artifact import make_folder


@contextmanager
def incoming_folder(parent: Path) -> Iterator[Path]:
    """A fresh folder under `parent`, removed when the block ends; sweeps what killed writers left.

    Its writer holds a lock on it that the kernel drops with the process, so a folder nobody
    holds is one whose writer was killed.
    """
    make_folder(parent)
    _sweep(parent)
    folder, handle = _make(parent)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        os.close(handle)


def _make(parent: Path) -> tuple[Path, int]:
    while True:
        folder = Path(tempfile.mkdtemp(dir=parent))
        handle = _lock(folder)
        # A sweep may have taken the folder between its making and its lock.
        if handle is not None and folder.is_dir():
            return folder, handle
        if handle is not None:
            os.close(handle)


def _sweep(parent: Path) -> None:
    for folder in parent.iterdir():
        handle = _lock(folder)
        if handle is not None:
            shutil.rmtree(folder, ignore_errors=True)
            os.close(handle)


def _lock(folder: Path) -> int | None:
    try:
        handle = os.open(folder, os.O_RDONLY)
    except OSError:
        return None
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(handle)
        return None
    return handle
