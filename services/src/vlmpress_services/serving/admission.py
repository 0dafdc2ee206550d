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
        max_concurrent: Calls of all methods together, but for watches.
        max_watching: Watches together: they wait most of the time, and many need not keep others out.
        max_concurrent_of: Calls of one method, by its name; None: only the limit of all counts.
    """

    def __init__(self, max_concurrent: int, max_watching: int, max_concurrent_of: Callable[[str], int | None]) -> None:
        self._limits = {"calls": max_concurrent, "watches": max_watching}
        self._max_concurrent_of = max_concurrent_of
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
        group = "watches" if method.is_watch else "calls"
        limit = self._limits[group]
        if self._running[group] >= limit:
            raise OverloadedError(f"server busy: {limit} {group} are running")
        own_limit = self._max_concurrent_of(method.name)
        if own_limit is not None and self._running[method.name] >= own_limit:
            raise OverloadedError(f"server busy: {own_limit} calls of {method.name} are running")
        self._running.update((group, method.name))
        try:
            yield
        finally:
            self._running.subtract((group, method.name))
