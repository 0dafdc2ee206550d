"""What stands before every handler: access, admission, deadlines, parsing, and the translation of errors.

Every method is served as one that takes a stream of bytes. So a call is refused before its first message is
read, a caller who sends slowly is under the deadline as any other, and a caller who sends nothing gets an error.
"""

import asyncio
import inspect
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import aclosing, asynccontextmanager
from pathlib import Path
from typing import Any, TypeAlias

import grpc

from vlmpress_services.errors import InvalidRequestError, RequestTooLargeError, UnknownMethodError
from vlmpress_services.serving.access import Access
from vlmpress_services.serving.admission import Admission
from vlmpress_services.serving.calls import REQUEST_ID_KEY, Call, begun, current_call
from vlmpress_services.serving.configuration import ServerConfig
from vlmpress_services.serving.deadlines import limited
from vlmpress_services.serving.failures import DETAILS_KEY, failure
from vlmpress_services.serving.methods import UNKNOWN, Method, other_method

Context = grpc.aio.ServicerContext[Any, Any]
# Quoted: generic in the type stubs only.
Handler: TypeAlias = "grpc.RpcMethodHandler[Any, Any]"
Continuation = Callable[[grpc.HandlerCallDetails], Awaitable[Any]]
Observer = Callable[[Call], None]

# The type stubs do not know it.
_EOF: Any = grpc.aio.EOF  # type: ignore[attr-defined]
_log = logging.getLogger(__name__)


class CallInterceptor(grpc.aio.ServerInterceptor):  # type: ignore[type-arg]
    """Takes every call through the same steps, whatever its method.

    Args:
        config: Limits and times.
        methods: Those of the hosted services by path.
        access: Who may call what.
        hidden: A path of this machine that error texts may hold; clients see "store" instead.
        began: Told of each call when it begins.
        ended: Told of each call when it has ended, however it did.
    """

    def __init__(
        self,
        config: ServerConfig,
        methods: Mapping[str, Method],
        access: Access,
        hidden: Path,
        *,
        began: Sequence[Observer] = (),
        ended: Sequence[Observer] = (),
    ) -> None:
        self._config = config
        self._methods = methods
        self._access = access
        self._hidden = hidden
        self._began, self._ended = began, ended
        self._admission = Admission(config.max_concurrent, config.max_watching, config.max_concurrent_of)

    async def intercept_service(self, continuation: Continuation, details: grpc.HandlerCallDetails) -> Any:
        """Wraps the handler."""
        handler: Handler = await continuation(details)
        path, metadata = str(details.method), details.invocation_metadata or ()
        call = begun(self._methods.get(path) or other_method(path), metadata)
        if handler.response_streaming:
            return grpc.stream_stream_rpc_method_handler(
                self._stream(call, handler), response_serializer=_serializer(call, handler)
            )
        return grpc.stream_unary_rpc_method_handler(self._unary(call, handler))

    async def refuse(self, context: Context) -> None:
        """Ends a call to a method that the server does not have."""
        metadata: Any = context.invocation_metadata() or ()
        async with self._conducted(begun(UNKNOWN, metadata), context):
            raise UnknownMethodError("method: the server has none of this name")

    def _unary(self, call: Call, handler: Handler) -> Any:
        inner: Any = handler.stream_unary if handler.request_streaming else handler.unary_unary
        serialize = _serializer(call, handler)

        async def behave(_: Any, context: Context) -> bytes:
            async with self._conducted(call, context):
                return serialize(await inner(await self._request(call, handler, context), context))
            raise AssertionError("a failed call has been aborted")

        return behave

    def _stream(self, call: Call, handler: Handler) -> Any:
        inner: Any = handler.stream_stream if handler.request_streaming else handler.unary_stream

        async def behave(_: Any, context: Context) -> None:
            async with self._conducted(call, context):
                await _write_all(inner(await self._request(call, handler, context), context), context)

        return behave

    @asynccontextmanager
    async def _conducted(self, call: Call, context: Context) -> AsyncIterator[None]:
        """Everything around a handler, from the first look at the caller to the last line in the log."""
        current_call.set(call)
        context.set_trailing_metadata(((REQUEST_ID_KEY, call.request_id),))
        for observe in self._began:
            observe(call)
        try:
            self._access.check(call, context)
            limit = self._config.time_limit_of(call.method)
            with self._admission.admitted(call.method):
                async with limited(call, limit, context.time_remaining()):
                    yield
        except asyncio.CancelledError:
            # By the caller, by the caller's deadline, or at the end of the server's grace.
            is_late = call.ends_s is not None and time.monotonic() >= call.ends_s
            call.code = grpc.StatusCode.DEADLINE_EXCEEDED if is_late else grpc.StatusCode.CANCELLED
            raise
        except grpc.aio.AbortError:
            call.code = context.code()
            raise
        except Exception as error:
            if isinstance(error, grpc.aio.BaseError) and not isinstance(error, grpc.aio.UsageError):
                # The caller or the server itself has gone: nobody is left to be told.
                call.code = grpc.StatusCode.CANCELLED
                raise
            await self._fail(call, context, error)
        finally:
            for observe in self._ended:
                observe(call)

    async def _fail(self, call: Call, context: Context, error: Exception) -> None:
        call.code, text, details = failure(error, self._hidden)
        if call.code is grpc.StatusCode.INTERNAL:
            _log.error("request %s: %s failed", call.request_id, call.method.name, exc_info=error)
        await context.abort(call.code, text, ((REQUEST_ID_KEY, call.request_id), (DETAILS_KEY, details)))

    async def _request(self, call: Call, handler: Handler, context: Context) -> Any:
        """What the handler gets: one message, or an iterator of them."""
        if handler.request_streaming:
            return self._requests(call, handler, context)
        data = await context.read()
        if data is _EOF:
            raise InvalidRequestError("request: expected one message, got none")
        return self._parsed(call, handler, data)

    async def _requests(self, call: Call, handler: Handler, context: Context) -> AsyncIterator[Any]:
        while (data := await context.read()) is not _EOF:
            yield self._parsed(call, handler, data)

    def _parsed(self, call: Call, handler: Handler, data: bytes) -> Any:
        call.received_bytes += len(data)
        limit = self._config.max_request_bytes_of(call.method.name)
        if len(data) > limit:
            raise RequestTooLargeError(f"request: expected at most {limit} bytes, got {len(data)}")
        if handler.request_deserializer is None:
            return data
        try:
            return handler.request_deserializer(data)
        except Exception as error:
            raise InvalidRequestError(f"request: expected a protobuf message, got {len(data)} other bytes") from error


def _serializer(call: Call, handler: Handler) -> Callable[[Any], bytes]:
    def serialize(response: Any) -> bytes:
        data: bytes = response if handler.response_serializer is None else handler.response_serializer(response)
        call.sent_bytes += len(data)
        return data

    return serialize


async def _write_all(responses: Any, context: Context) -> None:
    """Sends what a handler yields, or waits for one that writes itself; a cancelled call closes the handler at once."""
    if not inspect.isasyncgen(responses):
        await responses
        return
    async with aclosing(responses):
        async for response in responses:
            await context.write(response)
