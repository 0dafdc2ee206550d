"""An address that goes on listening when gRPC's server on it breaks.

A request whose path is no UTF-8 ends the loop of a `grpc.aio` server (1.85) for good: it listens no more, and what runs
runs on. Anyone who reaches the port can send one, before any token is asked for. So the server is replaced at once.
"""

import asyncio
import logging
from collections.abc import Callable
from contextlib import suppress

import grpc

from vlmpress_services.errors import ListenError

LOOK_INTERVAL_S = 0.02
# How long calls of a broken server may go on; each has a limit of its own before that.
LEFT_S = 24 * 3600.0

_log = logging.getLogger(__name__)


class Endpoint:
    """Servers on one address, one after the other.

    Args:
        make: Gives a server with its handlers, without a port.
        bind: Has a server listen on "host:port" and gives the port; raises ListenError.
    """

    def __init__(self, make: Callable[[], grpc.aio.Server], bind: Callable[[grpc.aio.Server, str], int]) -> None:
        self._make, self._bind = make, bind
        self._server: grpc.aio.Server | None = None
        self._broken: dict[grpc.aio.Server, asyncio.Task[None]] = {}
        self._watch: asyncio.Task[None] | None = None
        self._address = ""

    def bind(self, listen: str) -> str:
        """Takes the address, and gives "host:port" with the port taken.

        Raises:
            ListenError: The address is taken or is none of this machine's.
        """
        self._server = self._make()
        self._address = f"{listen.rpartition(':')[0]}:{self._bind(self._server, listen)}"
        return self._address

    async def start(self) -> None:
        """Takes calls; after `bind`."""
        if self._server is not None:
            await self._server.start()
            self._watch = asyncio.create_task(self._replace_broken())

    async def stop(self, grace_s: float) -> None:
        """No new calls; running ones get `grace_s` to end, and are then cancelled."""
        if self._watch is not None:
            self._watch.cancel()
            with suppress(asyncio.CancelledError):
                await self._watch
        servers = [*self._broken, *([] if self._server is None else [self._server])]
        await asyncio.gather(*(server.stop(grace_s) for server in servers))

    async def _replace_broken(self) -> None:
        while True:
            try:
                if self._server is not None:
                    await self._server.wait_for_termination(LOOK_INTERVAL_S)
            except Exception:
                _log.exception("the server on %s has broken and is replaced; running calls go on", self._address)
                self._leave(self._server)
                self._server = None
            if self._server is None:
                await self._listen_again()

    def _leave(self, server: grpc.aio.Server | None) -> None:
        if server is not None:
            task = self._broken[server] = asyncio.create_task(server.stop(LEFT_S))
            task.add_done_callback(lambda _: self._broken.pop(server, None))

    async def _listen_again(self) -> None:
        server = self._make()
        try:
            self._bind(server, self._address)
            await server.start()
            self._server = server
        except ListenError:
            # The port is let go of a moment after the break.
            await asyncio.sleep(LOOK_INTERVAL_S)
