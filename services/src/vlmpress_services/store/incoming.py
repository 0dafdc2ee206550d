"""Folders for what is being written, removed when their writer ends, however it ends."""

import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from vlmpress.artifact import Artifact, ArtifactError, flush_tree, make_folder, verify


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


@contextmanager
def copied(directory: Path, incoming: Path) -> Iterator[Artifact]:
    """A copy of an artifact directory under `incoming`, every byte checked and on the disk; gone after the block.

    Raises:
        ArtifactError: No artifact is there, or a byte is not as its manifest says.
    """
    with incoming_folder(incoming) as folder:
        copy = folder / "artifact"
        try:
            shutil.copytree(directory, copy, symlinks=True)
        except (shutil.Error, FileNotFoundError, NotADirectoryError, PermissionError) as error:
            raise ArtifactError(f"{directory}: expected an artifact directory, got {error}") from error
        try:
            artifact = verify(copy)
        except ArtifactError as error:
            message = str(error).replace(str(copy), str(directory))
            raise type(error)(message) from error
        flush_tree(copy)
        yield artifact


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
