"""One call, as everything that stands before its handler knows it."""

import re
import time
import uuid
from collections.abc import Sequence
from contextvars import ContextVar
from dataclasses import dataclass, field

import grpc

from vlmpress_services.serving.methods import Method

REQUEST_ID_KEY = "x-request-id"
_WELL_FORMED = re.compile(r"[A-Za-z0-9._-]{1,64}")


@dataclass(kw_only=True, slots=True)
class Call:
    """A call from its first byte to its last.

    Attributes:
        method: What the protos say of its method.
        metadata: What the caller sent before its first message.
        request_id: The caller's own where it is well-formed, else a new one.
        principal: Who calls: a token's name or a certificate's; empty where nobody has to say.
        code: Set when the call ends.
        start_s: Of the monotonic clock.
        ends_s: When the server ends it, of the monotonic clock; None: never.
        received_bytes: Of all request messages.
        sent_bytes: Of all response messages.
    """

    method: Method
    metadata: Sequence[tuple[str, str | bytes]] = ()
    request_id: str = field(default_factory=lambda: uuid.uuid4().hex)
    principal: str = ""
    code: grpc.StatusCode = grpc.StatusCode.OK
    start_s: float = field(default_factory=time.monotonic)
    ends_s: float | None = None
    received_bytes: int = 0
    sent_bytes: int = 0

    def first(self, key: str) -> str:
        """The first value of a metadata key; empty without one."""
        for name, value in self.metadata:
            if name == key:
                return value if isinstance(value, str) else ""
        return ""


current_call: ContextVar[Call | None] = ContextVar("current_call", default=None)
"""The call that runs, in its handler and in whatever the handler starts."""


def begun(method: Method, metadata: Sequence[tuple[str, str | bytes]]) -> Call:
    """A call that begins now."""
    call = Call(method=method, metadata=metadata)
    wanted = call.first(REQUEST_ID_KEY)
    if _WELL_FORMED.fullmatch(wanted):
        call.request_id = wanted
    return call
