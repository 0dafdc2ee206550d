"""gRPC's server, made so that no request ends it.

A `grpc.aio` server (1.85) reads the path of a call to a method that it does not know as UTF-8, in the loop that accepts
calls. A path that is none ends the loop, and a moment later a crash in gRPC's core ends the process. Anyone who reaches
the port can send one, before a token is asked for. So these calls are kept from that loop and refused here.
"""

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any

import grpc
from grpc._cython import cygrpc  # type: ignore[attr-defined]

Refuse = Callable[[grpc.aio.ServicerContext[Any, Any]], Awaitable[None]]


class _KnownMethodsServer(cygrpc.AioServer):
    """Takes calls to the methods that are registered with it, and has `refuse` answer all others."""

    refuse: Refuse

    async def _request_call(self) -> None:
        # The accept loop awaits one call to an unknown method here, and gets none.
        refusals: set[asyncio.Task[None]] = set()
        while True:
            state = await super()._request_call()
            context = cygrpc._ServicerContext(state, None, None, asyncio.get_running_loop())
            refusal = asyncio.create_task(_refused(self.refuse, context))
            refusals.add(refusal)
            refusal.add_done_callback(refusals.discard)


def make_server(interceptor: "grpc.aio.ServerInterceptor[Any, Any]", refuse: Refuse, **options: int) -> grpc.aio.Server:
    """A `grpc.aio` server for one running event loop.

    Args:
        interceptor: Stands before the handlers of registered methods.
        refuse: Ends a call to any other method with an error.
        options: gRPC's own, without their "grpc.".
    """
    given = tuple((f"grpc.{name}", value) for name, value in options.items())
    plain = cygrpc.AioServer
    # The public constructor takes no class.
    cygrpc.AioServer = _KnownMethodsServer
    try:
        server = grpc.aio.server(interceptors=(interceptor,), options=given)
    finally:
        cygrpc.AioServer = plain
    server._server.refuse = refuse  # type: ignore[attr-defined]
    return server


async def _refused(refuse: Refuse, context: grpc.aio.ServicerContext[Any, Any]) -> None:
    # An aborted call raises AbortError, one whose caller has left another of these.
    with suppress(grpc.aio.BaseError):
        await refuse(context)
