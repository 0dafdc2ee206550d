"""Folders in which jobs keep what they need to go on after a kill."""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from vlmpress_services.locking import locked
from vlmpress_services.store.interface import ArtifactStore


@contextmanager
def run_folder(store: ArtifactStore, work: str, digest: str) -> Iterator[Path]:
    """The folder of one piece of work, made if need be; of two jobs that ask for the same the second waits here.

    Args:
        store: Of the jobs.
        work: The kind of work.
        digest: 64 hex digits, equal for jobs that go on where the other stopped.
    """
    name = f"{work}-{digest[:32]}"
    folder = store.root / "runs" / name
    # Not inside the folder, which goes when the work is done.
    with locked(store.root / "jobs" / f"{name}.lock", math.inf):
        folder.mkdir(parents=True, exist_ok=True)
        yield folder
