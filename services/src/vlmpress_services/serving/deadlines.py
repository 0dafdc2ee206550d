"""How long a call may take: what the caller asked for, within what the server allows."""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

import grpc

from vlmpress_services.errors import TimeLimitError
from vlmpress_services.serving.calls import Call, current_call


@dataclass(frozen=True, kw_only=True, slots=True)
class TimeLimit:
    """Of one method, in seconds; 0: none.

    Attributes:
        default_s: For callers without a deadline.
        max_s: For all callers.
    """

    default_s: float
    max_s: float

    def of(self, asked_s: float | None) -> float | None:
        """Seconds for a call whose caller asked for so many; None: without end."""
        wanted_s = asked_s if asked_s is not None else self.default_s or None
        if not self.max_s:
            return wanted_s
        return self.max_s if wanted_s is None else min(wanted_s, self.max_s)


UNLIMITED = TimeLimit(default_s=0, max_s=0)


@asynccontextmanager
async def limited(call: Call, limit: TimeLimit, asked_s: float | None) -> AsyncIterator[None]:
    """Ends the block when the call's time is over; `call.ends_s` says when that is.

    Raises:
        TimeLimitError: It was.
    """
    seconds = limit.of(asked_s)
    call.ends_s = None if seconds is None else time.monotonic() + seconds
    # The caller's own deadline is kept by gRPC, which cancels the call.
    timer = asyncio.timeout(None if seconds == asked_s else seconds)
    try:
        async with timer:
            yield
    except TimeoutError as error:
        if timer.expired():
            raise TimeLimitError(f"{call.method.name}: ended after {seconds:g} s, the server's limit") from error
        raise


def time_left_s(context: "grpc.aio.ServicerContext[object, object]") -> float | None:
    """Seconds until the running call is ended by its caller's deadline or the server's limit; None: never."""
    call = current_call.get()
    if call is None:
        return context.time_remaining()
    return None if call.ends_s is None else max(0.0, call.ends_s - time.monotonic())
