"""Locks between processes that the kernel drops with their holder."""

import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from vlmpress_services.errors import LockedError

POLL_INTERVAL_S = 0.1
# Workers of a process that was killed may be alive for some seconds.
TIMEOUT_S = 60.0


@contextmanager
def locked(path: Path, timeout_s: float = TIMEOUT_S) -> Iterator[None]:
    """Holds the lock of a file, which is made if need be, for the length of a block.

    Raises:
        LockedError: Another process held it for the whole of `timeout_s`.
    """
    deadline_s = time.monotonic() + timeout_s
    while (handle := take(path)) is None:
        if time.monotonic() >= deadline_s:
            raise LockedError(f"{path}: expected to be alone here within {timeout_s:g} s, got another process")
        time.sleep(POLL_INTERVAL_S)
    try:
        yield
    finally:
        os.close(handle)


def take(path: Path) -> int | None:
    """A handle that holds the lock of a file, which is made if need be, until it is closed; None: somebody holds it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(handle)
        return None
    except BaseException:
        os.close(handle)
        raise
    return handle


def is_at(path: Path, handle: int) -> bool:
    """Whether a path leads to what a handle is open on: who waited for a lock may hold that of a place that is gone."""
    try:
        return os.path.samestat(path.stat(), os.fstat(handle))
    except FileNotFoundError:
        return False
