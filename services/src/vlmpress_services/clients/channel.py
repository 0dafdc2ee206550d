"""What every client is: an address and, from the first call on, a channel to it."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Self

import grpc

from vlmpress_services.errors import ServiceError

MAX_MESSAGE_BYTES = 16 << 20
DEFAULT_TIMEOUT_S = 120.0
LOAD_TIMEOUT_S = 600.0


class Client:
    """Synchronous; usable as a context manager, and picklable: it holds nothing but an address until the first call."""

    def __init__(self, address: str, *, timeout_s: float = DEFAULT_TIMEOUT_S) -> None:
        self.address = address
        self.timeout_s = timeout_s
        self._channel: grpc.Channel | None = None

    def close(self) -> None:
        """Closes the channel; the next call opens another."""
        if self._channel is not None:
            self._channel.close()
            self._channel = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __getstate__(self) -> dict[str, Any]:
        return {"address": self.address, "timeout_s": self.timeout_s}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(state["address"], timeout_s=state["timeout_s"])  # type: ignore[misc]

    def _stub(self, make: Callable[[grpc.Channel], Any]) -> Any:
        if self._channel is None:
            limits = [(f"grpc.max_{way}_message_length", MAX_MESSAGE_BYTES) for way in ("send", "receive")]
            self._channel = grpc.insecure_channel(self.address, options=limits)
        return make(self._channel)


@contextmanager
def typed_errors() -> Iterator[None]:
    """Turns gRPC's errors into ServiceError."""
    try:
        yield
    except grpc.RpcError as error:
        # What a synchronous stub raises is also the call, which knows its status.
        code = error.code().name if isinstance(error, grpc.Call) else "UNKNOWN"
        text = error.details() if isinstance(error, grpc.Call) else str(error)
        raise ServiceError(code, " ".join((text or "").split())) from error
