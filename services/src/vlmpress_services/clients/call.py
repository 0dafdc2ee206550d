"""A call before anybody makes it: what synchronous and asyncio clients share."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from google.protobuf.message import Message

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True, slots=True)
class Call(Generic[T]):
    """One call.

    Attributes:
        stub: The generated stub's class.
        method: Name of the method.
        request: The message it takes.
        read: What a message of the answer says.
        timeout_s: Seconds; None: as the client's other calls; infinity: no end.
    """

    stub: Callable[[Any], Any]
    method: str
    request: Message
    read: Callable[[Any], T]
    timeout_s: float | None = None

    def seconds(self, default_s: float) -> float | None:
        """The timeout as gRPC takes it."""
        timeout_s = default_s if self.timeout_s is None else self.timeout_s
        return None if math.isinf(timeout_s) else timeout_s


@dataclass(frozen=True, kw_only=True, slots=True)
class Page(Generic[T]):
    """Some items of a list, and what asks for those after them; empty after the last page."""

    items: Sequence[T]
    next_token: str
