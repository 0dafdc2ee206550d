"""Artifacts of a bucket as directories of this machine, the longest unused given up for new ones."""

import errno
import fcntl
import math
import os
import threading
import time
from dataclasses import dataclass
from pathlib import Path

from vlmpress.artifact import Artifact, flush, make_folder
from vlmpress_services.locking import is_at
from vlmpress_services.store.incoming import incoming_folder


@dataclass(slots=True)
class _Lease:
    """An open directory whose shared lock says that a process works with it."""

    handle: int
    used_s: float


# Of the process, not of a cache: who asks for an artifact keeps its path and may drop the store.
_leases: dict[Path, _Lease] = {}
_guard = threading.Lock()


class Cache:
    """Directories by digest, shared by the processes of a machine.

    What a process has asked for is in use as long as the process lives, and is not given up: a job reads its dataset
    for days. `lease_s` ends that earlier for who lives longer than its work with an artifact, as a server does.

    Args:
        folder: Holds one directory an artifact.
        incoming: Where directories go that are given up; on the same file system.
        max_bytes: Of all files; what is in use may be more. None: no bound.
        lease_s: How long after it was last asked for an artifact is in use by this process, seconds.
    """

    def __init__(
        self, folder: Path, incoming: Path, *, max_bytes: int | None = None, lease_s: float = math.inf
    ) -> None:
        self._folder = folder.absolute()
        self._incoming = incoming
        self._max_bytes = max_bytes
        self._lease_s = lease_s

    def get(self, digest: str) -> Path | None:
        """The directory of an artifact, in use from here on; None when it is not there."""
        place = self._folder / digest
        with _guard:
            lease = _leases.get(place)
            if lease is not None and is_at(place, lease.handle):
                lease.used_s = time.monotonic()
            else:
                handle = _shared(place)
                if handle is None:
                    return None
                _hold(place, handle)
            os.utime(place)
        return place

    def put(self, artifact: Artifact) -> Path:
        """Moves a whole directory in, in use from here on, and makes room; the first of equal ones stays."""
        make_folder(self._folder)
        self._end_old_leases()
        place = self._folder / artifact.digest
        while self.get(artifact.digest) is None:
            # Locked before anybody can see it there, and give it up.
            handle = _shared(artifact.path)
            try:
                artifact.path.rename(place)
            except OSError as error:
                if handle is not None:
                    os.close(handle)
                if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                    raise
                continue
            if handle is not None:
                with _guard:
                    _hold(place, handle)
        flush(self._folder)
        self._make_room()
        return place

    def _make_room(self) -> None:
        if self._max_bytes is None:
            return
        entries = sorted((_used_s(path), path) for path in self._folder.iterdir())
        sizes = {path: _size_bytes(path) for _, path in entries}
        excess = sum(sizes.values()) - self._max_bytes
        with incoming_folder(self._incoming) as aside:
            for _, path in entries:
                if excess > 0 and _given_up(path, aside):
                    excess -= sizes[path]

    def _end_old_leases(self) -> None:
        with _guard:
            oldest_s = time.monotonic() - self._lease_s
            for place in [place for place, lease in _leases.items() if place.parent == self._folder]:
                if _leases[place].used_s < oldest_s:
                    os.close(_leases.pop(place).handle)


def _hold(place: Path, handle: int) -> None:
    """Makes a handle the process's lease on a place; one on what was there before is of no use any more."""
    if place in _leases:
        os.close(_leases[place].handle)
    _leases[place] = _Lease(handle, time.monotonic())


def _shared(place: Path) -> int | None:
    """A handle on a directory, locked against its being given up; None when it is not there."""
    try:
        handle = os.open(place, os.O_RDONLY | os.O_DIRECTORY)
    except FileNotFoundError:
        return None
    fcntl.flock(handle, fcntl.LOCK_SH)
    if is_at(place, handle):
        return handle
    os.close(handle)  # given up between its opening and its lock
    return None


def _given_up(place: Path, aside: Path) -> bool:
    """Moves a directory away that nobody uses; False when somebody does, or it is gone."""
    try:
        handle = os.open(place, os.O_RDONLY | os.O_DIRECTORY)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        place.rename(aside / place.name)
    except (BlockingIOError, FileNotFoundError):
        return False
    finally:
        os.close(handle)
    return True


def _used_s(place: Path) -> float:
    try:
        return place.stat().st_mtime
    except FileNotFoundError:
        return 0.0


def _size_bytes(place: Path) -> int:
    total = 0
    for folder, _, names in os.walk(place):
        for name in names:
            try:
                total += (Path(folder) / name).stat().st_size
            except FileNotFoundError:
                continue  # given up by another process meanwhile
    return total
