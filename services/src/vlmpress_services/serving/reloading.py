"""Files that a running server reads again when they change."""

import logging
import os
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Generic, TypeVar

from vlmpress_services.errors import InvalidRequestError

T = TypeVar("T")
_log = logging.getLogger(__name__)


class Reloaded(Generic[T]):
    """What files hold. A change that cannot be read is logged, and what was read before it stays in force.

    Args:
        name: What they are, for the log.
        paths: The files.
        read: Reads them; raises InvalidRequestError where they are not what they should be.

    Raises:
        InvalidRequestError: They cannot be read at first.
    """

    def __init__(self, name: str, paths: Sequence[Path], read: Callable[[], T]) -> None:
        self._name, self._paths, self._read = name, paths, read
        self._lock = threading.Lock()
        self._seen = self._versions()
        self._value = read()

    def get(self) -> T:
        """What they hold now, the same object until they change; from any thread."""
        with self._lock:
            versions = self._versions()
            if versions != self._seen:
                # What changes while it is read is seen the next time.
                self._seen = versions
                self._reload()
            return self._value

    def _reload(self) -> None:
        try:
            self._value = self._read()
            _log.info("%s: changed and were read again", self._name)
        except InvalidRequestError as error:
            _log.error("%s: changed but cannot be read; what was read before stays in force: %s", self._name, error)

    def _versions(self) -> list[tuple[int, int, int]]:
        return [_version(path) for path in self._paths]


def _version(path: Path) -> tuple[int, int, int]:
    try:
        status = os.stat(path)  # noqa: PTH116 - once a call; half the time of Path.stat
    except OSError:
        return (0, 0, 0)
    return (status.st_mtime_ns, status.st_size, status.st_ino)
