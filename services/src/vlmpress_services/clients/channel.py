"""What every client is: a connection and, from the first call on, a channel over it."""

import functools
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Self, TypeVar

import grpc

from vlmpress_services.clients.call import Call, Page
from vlmpress_services.clients.connection import Connection, read_file
from vlmpress_services.clients.failures import service_error
from vlmpress_services.clients.retries import Breaks, service_config
from vlmpress_services.errors import ServiceError

T = TypeVar("T")
MAX_MESSAGE_BYTES = 16 << 20
DEFAULT_TIMEOUT_S = 120.0
LOAD_TIMEOUT_S = 600.0
# Finds a dead peer of a quiet stream; servers take pings more often than every five minutes for an attack.
KEEPALIVE_MS = 330_000


class ConnectedClient:
    """A connection and the time that calls may take; picklable: it holds nothing else until the first call.

    Args:
        server: Connection, or an address to reach without TLS and token.
        timeout_s: Of every call that does not say otherwise, seconds.
    """

    def __init__(self, server: str | Connection, *, timeout_s: float = DEFAULT_TIMEOUT_S) -> None:
        self.connection = server if isinstance(server, Connection) else Connection(address=server)
        self.timeout_s = timeout_s
        self._channel: Any = None

    @property
    def address(self) -> str:
        """The server's address."""
        return self.connection.address

    def __getstate__(self) -> dict[str, Any]:
        return {"connection": self.connection, "timeout_s": self.timeout_s, "_channel": None}

    def _open(self, library: Any, make: Callable[[Any], Any]) -> Any:
        if self._channel is None:
            self._channel = open_channel(self.connection, library)
        return make(TokenChannel(self._channel, self.connection.token))


class Client(ConnectedClient):
    """Synchronous; usable as a context manager."""

    def close(self) -> None:
        """Closes the channel; the next call opens another."""
        if self._channel is not None:
            self._channel.close()
            self._channel = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _stub(self, make: Callable[[Any], Any]) -> Any:
        return self._open(grpc, make)

    def _call(self, call: Call[T]) -> T:
        """What the answer says; raises ServiceError."""
        with typed_errors():
            method = getattr(self._stub(call.stub), call.method)
            return call.read(method(call.request, timeout=call.seconds(self.timeout_s)))

    def _stream(self, call: Call[T]) -> Iterator[T]:
        """What each message of the answer says, as it comes; raises ServiceError."""
        with typed_errors():
            method = getattr(self._stub(call.stub), call.method)
            responses = method(call.request, timeout=call.seconds(self.timeout_s))
            try:
                for response in responses:
                    yield call.read(response)
            finally:
                responses.cancel()

    def _resume(self, rest: Callable[[], Call[T]]) -> Iterator[T]:
        """A stream to its end, taken up again where it broke; `rest` calls for what is left; raises ServiceError."""
        breaks = Breaks()
        while True:
            try:
                for item in self._stream(rest()):
                    breaks.reset()
                    yield item
                return
            except ServiceError as error:
                pause_s = breaks.pause_s(error)
            time.sleep(pause_s)

    def _pages(self, page: Callable[[str], Call[Page[T]]]) -> list[T]:
        """The items of all pages; raises ServiceError."""
        answer = self._call(page(""))
        items = list(answer.items)
        while answer.next_token:
            answer = self._call(page(answer.next_token))
            items += answer.items
        return items


class TokenChannel:
    """A channel whose calls carry a token; stubs ask of a channel for its multi-callables and nothing else.

    gRPC's own call credentials refuse every channel without TLS, those that stay on this machine too.
    """

    def __init__(self, channel: Any, token: str) -> None:
        self._channel = channel
        self._metadata = (("authorization", f"Bearer {token}"),) if token else ()

    def __getattr__(self, kind: str) -> Callable[..., Any]:
        """`unary_unary` and its like."""
        make = getattr(self._channel, kind)
        return lambda *names, **options: functools.partial(make(*names, **options), metadata=self._metadata)


def open_channel(connection: Connection, library: Any) -> Any:
    """A channel of `grpc` or of `grpc.aio`; it connects with the first call.

    Raises:
        InvalidRequestError: A file of the connection cannot be read.
    """
    options = [
        *((f"grpc.max_{way}_message_length", MAX_MESSAGE_BYTES) for way in ("send", "receive")),
        ("grpc.service_config", service_config()),
        ("grpc.keepalive_time_ms", KEEPALIVE_MS),
        # Else gRPC takes some MiB before anybody reads them, all of which a broken connection sends again.
        ("grpc.http2.bdp_probe", 0),
    ]
    if not connection.is_encrypted:
        return library.insecure_channel(connection.target, options=options)
    files = {"ca": connection.ca, "key": connection.key, "cert": connection.cert}
    pem = {what: None if path is None else read_file(path, what) for what, path in files.items()}
    credentials = grpc.ssl_channel_credentials(pem["ca"], pem["key"], pem["cert"])
    return library.secure_channel(connection.target, credentials, options=options)


@contextmanager
def typed_errors() -> Iterator[None]:
    """Turns gRPC's errors, of synchronous and of asyncio calls, into ServiceError."""
    try:
        yield
    except grpc.RpcError as error:
        raise service_error(error) from error
