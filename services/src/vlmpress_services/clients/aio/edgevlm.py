"""Asks a server's models."""

from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing

from vlmpress_services.clients.aio.channel import Client
from vlmpress_services.clients.generating import (
    Answer,
    AnswerReader,
    GeneratedToken,
    LoadedModelInfo,
    Sampling,
    Turn,
    generate_call,
    load_call,
)


class EdgeVlmClient(Client):
    """Asks models of the store about images."""

    async def load(self, ref: str) -> LoadedModelInfo:
        """Loads a model by digest or tag; raises ServiceError."""
        return await self._call(load_call(ref))

    async def generate(
        self,
        ref: str,
        images: bytes | Sequence[bytes] | None,
        prompt: str,
        max_new_tokens: int,
        max_visual_tokens: int | None = None,
        *,
        history: Sequence[Turn] = (),
        sampling: Sampling | None = None,
    ) -> Answer:
        """The answer to one question about encoded images, with at most so many visual tokens.

        Arguments and errors are those of the synchronous client.
        """
        call = generate_call(ref, images, prompt, max_new_tokens, max_visual_tokens, history, sampling)
        reader = AnswerReader(self.timeout_s)
        async with aclosing(self._stream(call)) as responses:
            async for response in responses:
                reader.take(response)
        return reader.answer()

    async def stream(
        self,
        ref: str,
        images: bytes | Sequence[bytes] | None,
        prompt: str,
        max_new_tokens: int,
        max_visual_tokens: int | None = None,
        *,
        history: Sequence[Turn] = (),
        sampling: Sampling | None = None,
    ) -> AsyncGenerator[GeneratedToken | Answer, None]:
        """As `generate`, token by token as they come; the whole answer is the last item."""
        call = generate_call(ref, images, prompt, max_new_tokens, max_visual_tokens, history, sampling)
        reader = AnswerReader(self.timeout_s)
        async with aclosing(self._stream(call)) as responses:
            async for response in responses:
                if token := reader.take(response):
                    yield token
        yield reader.answer()
