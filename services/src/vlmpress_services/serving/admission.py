"""How many calls may run at a time, in all and of each method."""

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from vlmpress_services.errors import OverloadedError
from vlmpress_services.serving.methods import Method


class Admission:
    """Counts running calls and refuses the next one at once; health checks always pass.

    For one event loop: nothing happens between a test and the count that follows it.

    Args:
        max_concurrent: Calls of all methods together.
        max_concurrent_of: Calls of one method, by its name; None: only the limit of all counts.
    """

    def __init__(self, max_concurrent: int, max_concurrent_of: Callable[[str], int | None]) -> None:
        self._max_concurrent = max_concurrent
        self._max_concurrent_of = max_concurrent_of
        self._num_running = 0
        self._running: Counter[str] = Counter()

    @contextmanager
    def admitted(self, method: Method) -> Iterator[None]:
        """Holds a place for one call.

        Raises:
            OverloadedError: There is none.
        """
        if method.is_health:
            yield
            return
        if self._num_running >= self._max_concurrent:
            raise OverloadedError(f"server busy: {self._max_concurrent} calls are running")
        limit = self._max_concurrent_of(method.name)
        if limit is not None and self._running[method.name] >= limit:
            raise OverloadedError(f"server busy: {limit} calls of {method.name} are running")
        self._num_running += 1
        self._running[method.name] += 1
        try:
            yield
        finally:
            self._num_running -= 1
            self._running[method.name] -= 1
