"""Runs one model's batch in the model's thread and gives each call its own stream of events.

A call hands its request in and gets events out through the event loop; the model's thread takes what has
come, makes one step of the batch, and tells the event loop once what all streams got from it. It runs
while there is work and never waits for a reader.
"""

import asyncio
import itertools
import threading
from collections.abc import AsyncGenerator, Callable
from concurrent.futures import Executor
from dataclasses import dataclass

from edgevlm.serving.batching import Batcher, Handle
from edgevlm.serving.events import BatchEvent, Failed, Finish, GenerationEvent
from edgevlm.serving.preparing import Prepared
from vlmpress_services.errors import OverloadedError
from vlmpress_services.serving.executor import DEFAULT_MAX_PENDING, BoundedExecutor


class Outbox:
    """Events of one stream between the model and a reader, who takes all that have come at once."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._events: list[BatchEvent] = []
        self._waiter: asyncio.Future[None] | None = None

    def put(self, event: BatchEvent) -> None:
        """Adds an event; in the event loop's thread."""
        self._events.append(event)
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    async def take(self) -> list[BatchEvent]:
        """What has come since the last time, at least one event."""
        while not self._events:
            self._waiter = self._loop.create_future()
            await self._waiter
        events, self._events = self._events, []
        return events


@dataclass(frozen=True, slots=True)
class _Submit:
    number: int
    prepared: Prepared
    outbox: Outbox


@dataclass(frozen=True, slots=True)
class _Cancel:
    number: int


class GenerationLoop:
    """Streams of one model; `stream` is for one event loop.

    Args:
        batcher: Touched by the model's thread alone.
        max_pending: Calls that may be open at a time, waiting ones included.
    """

    def __init__(self, batcher: Batcher, max_pending: int = DEFAULT_MAX_PENDING) -> None:
        self._batcher = batcher
        self._max_pending = max_pending
        self._num_open = 0
        self._numbers = itertools.count()
        self._lock = threading.Lock()
        # Guarded by the lock: what the model's thread has not taken yet, and whether it runs.
        self._inbox: list[_Submit | _Cancel] = []
        self._is_running = False
        # Of the model's thread.
        self._outboxes: dict[Handle, tuple[int, Outbox]] = {}

    async def stream(
        self, model_thread: BoundedExecutor, preparing: Executor, prepare: Callable[[], Prepared]
    ) -> AsyncGenerator[GenerationEvent, None]:
        """Events of one request as they come; closing the stream frees its slot at the next token.

        Args:
            model_thread: The only thread that may touch the model.
            preparing: Threads for decoding images and for tokenizing.
            prepare: Checks the request; what it raises is raised here.

        Raises:
            OverloadedError: `max_pending` calls are open already.
        """
        if self._num_open >= self._max_pending:
            raise OverloadedError(f"generation: {self._max_pending} calls are open")
        self._num_open += 1
        try:
            loop = asyncio.get_running_loop()
            prepared = await loop.run_in_executor(preparing, prepare)
            number, outbox = next(self._numbers), Outbox(loop)
            self._post(model_thread, loop, _Submit(number, prepared, outbox))
            event: BatchEvent | None = None
            try:
                while not isinstance(event, Finish):
                    for event in await outbox.take():
                        if isinstance(event, Failed):
                            raise event.error
                        yield event
            finally:
                if not isinstance(event, Finish | Failed):
                    self._post(model_thread, loop, _Cancel(number))
        finally:
            self._num_open -= 1

    def _post(self, model_thread: BoundedExecutor, loop: asyncio.AbstractEventLoop, command: _Submit | _Cancel) -> None:
        with self._lock:
            self._inbox.append(command)
            if self._is_running:
                return
            self._is_running = True
        try:
            model_thread.submit(lambda: self._run(loop))
        except BaseException:
            with self._lock:
                self._is_running = False
            raise

    def _run(self, loop: asyncio.AbstractEventLoop) -> None:
        """Steps while there is work; in the model's thread."""
        while True:
            with self._lock:
                commands, self._inbox = self._inbox, []
                if not commands and not self._batcher.has_work:
                    self._is_running = False
                    return
            for command in commands:
                self._obey(command)
            deliveries = self._step()
            if deliveries and not loop.is_closed():
                loop.call_soon_threadsafe(_deliver, deliveries)

    def _obey(self, command: _Submit | _Cancel) -> None:
        if isinstance(command, _Submit):
            self._outboxes[self._batcher.submit(command.prepared)] = command.number, command.outbox
            return
        for handle, (number, _) in self._outboxes.items():
            if number == command.number:
                self._batcher.cancel(handle)
                del self._outboxes[handle]
                return

    def _step(self) -> list[tuple[Outbox, BatchEvent]]:
        try:
            events = self._batcher.step()
        except Exception as error:
            events = [(handle, Failed(error=error)) for handle in self._batcher.clear()]
        deliveries = [(self._outboxes[handle][1], event) for handle, event in events]
        for handle, event in events:
            if isinstance(event, Finish | Failed):
                del self._outboxes[handle]
        return deliveries


def _deliver(deliveries: list[tuple[Outbox, BatchEvent]]) -> None:
    for outbox, event in deliveries:
        outbox.put(event)
