"""One thread that does a model's work, so that the event loop never waits for it."""

import asyncio
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeVar

from vlmpress_services.errors import OverloadedError

T = TypeVar("T")
DEFAULT_MAX_PENDING = 64


class BoundedExecutor:
    """Runs calls one after the other in its own thread; refuses more than `max_pending` at a time."""

    def __init__(self, name: str, max_pending: int = DEFAULT_MAX_PENDING) -> None:
        self._name = name
        self._max_pending = max_pending
        self._free = threading.BoundedSemaphore(max_pending)
        self._pool = ThreadPoolExecutor(max_workers=1, thread_name_prefix=name)

    async def run(self, function: Callable[..., T], *arguments: Any) -> T:
        """Result of `function(*arguments)`.

        Raises:
            OverloadedError: `max_pending` calls wait or run already.
        """
        return await asyncio.wrap_future(self.submit(lambda: function(*arguments)))

    def submit(self, work: Callable[[], T]) -> "Future[T]":
        """Runs `work` once what waits before it is done.

        Raises:
            OverloadedError: `max_pending` calls wait or run already.
        """
        if not self._free.acquire(blocking=False):
            raise OverloadedError(f"{self._name}: {self._max_pending} calls are waiting")
        try:
            future = self._pool.submit(work)
        except RuntimeError:
            self._free.release()
            raise
        future.add_done_callback(lambda _: self._free.release())
        return future

    def close(self) -> None:
        """Takes no more calls and drops those that wait; the running one ends by itself."""
        self._pool.shutdown(wait=False, cancel_futures=True)
