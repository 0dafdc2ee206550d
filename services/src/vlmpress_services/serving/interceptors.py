"""What stands before every handler: admission, parsing, and the translation of errors."""

import inspect
import logging
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, aclosing, asynccontextmanager
from pathlib import Path
from typing import Any, TypeAlias

import grpc

from vlmpress_services.errors import InvalidRequestError, status_of

HEALTH_PREFIX = "/grpc.health.v1.Health/"
REQUEST_ID_KEY = "x-request-id"

Context = grpc.aio.ServicerContext[Any, Any]
Guard = Callable[[Context], AbstractAsyncContextManager[None]]
Parse = Callable[[Any], Any]
# Quoted: generic in the type stubs only.
Handler: TypeAlias = "grpc.RpcMethodHandler[Any, Any]"
Continuation = Callable[[grpc.HandlerCallDetails], Awaitable[Any]]

_log = logging.getLogger(__name__)


class AdmissionInterceptor(grpc.aio.ServerInterceptor):  # type: ignore[type-arg]
    """Lets at most `max_concurrent` calls run; refuses the next one at once. Health checks always pass."""

    def __init__(self, max_concurrent: int) -> None:
        self._max_concurrent = max_concurrent
        self._running = 0

    async def intercept_service(self, continuation: Continuation, details: grpc.HandlerCallDetails) -> Any:
        """Wraps the handler of every method but health checks."""
        handler = await continuation(details)
        if handler is None or details.method.startswith(HEALTH_PREFIX):
            return handler
        return _wrap(handler, self._admit)

    @asynccontextmanager
    async def _admit(self, context: Context) -> AsyncIterator[None]:
        # One thread runs the event loop, so nothing happens between the test and the increment.
        if self._running >= self._max_concurrent:
            await context.abort(
                grpc.StatusCode.RESOURCE_EXHAUSTED, f"server busy: {self._max_concurrent} calls are running"
            )
        self._running += 1
        try:
            yield
        finally:
            self._running -= 1


class ErrorInterceptor(grpc.aio.ServerInterceptor):  # type: ignore[type-arg]
    """Parses requests itself, and turns every error into a status code by the table in `errors`.

    Args:
        hidden: A path of this machine that error texts may hold; clients see "store" instead.
    """

    def __init__(self, hidden: Path) -> None:
        self._hidden = str(hidden)

    async def intercept_service(self, continuation: Continuation, details: grpc.HandlerCallDetails) -> Any:
        """Wraps every handler."""
        handler = await continuation(details)
        if handler is None:
            return None
        return _wrap(handler, lambda context: self._translate(context, details.method), _parser(handler))

    @asynccontextmanager
    async def _translate(self, context: Context, method: str) -> AsyncIterator[None]:
        try:
            yield
        except grpc.aio.AbortError:
            raise
        except Exception as error:
            code, text = status_of(error)
            if code is grpc.StatusCode.INTERNAL:
                request_id = uuid.uuid4().hex
                _log.exception("request %s: %s failed", request_id, method)
                context.set_trailing_metadata(((REQUEST_ID_KEY, request_id),))
            await context.abort(code, text.replace(self._hidden, "store"))


def _parser(handler: Handler) -> Parse:
    deserialize = handler.request_deserializer

    def parse(data: bytes) -> Any:
        if deserialize is None:
            return data
        try:
            return deserialize(data)
        except Exception as error:
            raise InvalidRequestError(f"request: expected a protobuf message, got {len(data)} other bytes") from error

    return parse


def _wrap(handler: Handler, guard: Guard, parse: Parse | None = None) -> Any:
    """The handler with `guard` around each call; with `parse`, requests reach it as bytes and are parsed inside."""
    deserialize = handler.request_deserializer if parse is None else None
    behaviours: dict[tuple[bool, bool], tuple[Any, Any]] = {
        (False, False): (handler.unary_unary, grpc.unary_unary_rpc_method_handler),
        (False, True): (handler.unary_stream, grpc.unary_stream_rpc_method_handler),
        (True, False): (handler.stream_unary, grpc.stream_unary_rpc_method_handler),
        (True, True): (handler.stream_stream, grpc.stream_stream_rpc_method_handler),
    }
    inner, make = behaviours[handler.request_streaming, handler.response_streaming]

    def prepared(request: Any) -> Any:
        if parse is None:
            return request
        return _parsed(request, parse) if handler.request_streaming else parse(request)

    async def unary(request: Any, context: Context) -> Any:
        async with guard(context):
            return await inner(prepared(request), context)

    async def stream(request: Any, context: Context) -> None:
        async with guard(context):
            await _write_all(inner(prepared(request), context), context)

    behaviour = stream if handler.response_streaming else unary
    return make(behaviour, request_deserializer=deserialize, response_serializer=handler.response_serializer)


async def _parsed(requests: AsyncIterator[bytes], parse: Parse) -> AsyncIterator[Any]:
    async for data in requests:
        yield parse(data)


async def _write_all(responses: Any, context: Context) -> None:
    """Sends what a handler yields, or waits for one that writes itself; a cancelled call closes the handler at once."""
    if not inspect.isasyncgen(responses):
        await responses
        return
    async with aclosing(responses):
        async for response in responses:
            await context.write(response)
