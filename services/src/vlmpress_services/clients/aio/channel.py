"""What every asyncio client is."""

import asyncio
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from typing import Any, Self, TypeVar

import grpc

from vlmpress_services.clients.call import Call, Page
from vlmpress_services.clients.channel import ConnectedClient, typed_errors
from vlmpress_services.clients.retries import Breaks
from vlmpress_services.errors import ServiceError

T = TypeVar("T")


class Client(ConnectedClient):
    """For one event loop; usable as an asynchronous context manager."""

    async def close(self) -> None:
        """Closes the channel; the next call opens another."""
        channel, self._channel = self._channel, None
        if channel is not None:
            await channel.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    def _stub(self, make: Callable[[Any], Any]) -> Any:
        return self._open(grpc.aio, make)

    async def _call(self, call: Call[T]) -> T:
        """What the answer says; raises ServiceError."""
        with typed_errors():
            method = getattr(self._stub(call.stub), call.method)
            return call.read(await method(call.request, timeout=call.seconds(self.timeout_s)))

    async def _stream(self, call: Call[T]) -> AsyncGenerator[T, None]:
        """What each message of the answer says, as it comes; raises ServiceError."""
        with typed_errors():
            method = getattr(self._stub(call.stub), call.method)
            responses = method(call.request, timeout=call.seconds(self.timeout_s))
            try:
                async for response in responses:
                    yield call.read(response)
            finally:
                responses.cancel()

    async def _resume(self, rest: Callable[[], Call[T]]) -> AsyncGenerator[T, None]:
        """A stream to its end, taken up again where it broke; `rest` calls for what is left; raises ServiceError."""
        breaks = Breaks()
        while True:
            try:
                async with aclosing(self._stream(rest())) as items:
                    async for item in items:
                        breaks.reset()
                        yield item
                return
            except ServiceError as error:
                pause_s = breaks.pause_s(error)
            await asyncio.sleep(pause_s)

    async def _pages(self, page: Callable[[str], Call[Page[T]]]) -> list[T]:
        """The items of all pages; raises ServiceError."""
        answer = await self._call(page(""))
        items = list(answer.items)
        while answer.next_token:
            answer = await self._call(page(answer.next_token))
            items += answer.items
        return items
