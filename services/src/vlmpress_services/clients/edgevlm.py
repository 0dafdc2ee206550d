"""Asks a server's models."""

from collections.abc import Iterator, Sequence

from vlmpress_services.clients.channel import Client
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

    def load(self, ref: str) -> LoadedModelInfo:
        """Loads a model by digest or tag; raises ServiceError."""
        return self._call(load_call(ref))

    def generate(
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

        Args:
            ref: Digest or tag of the model.
            images: Encoded; those of `history` first.
            prompt: The question, without chat markup.
            max_new_tokens: At least 1.
            max_visual_tokens: At least 1; None: no limit.
            history: Turns before the question, the oldest first.
            sampling: None: the most likely token each time.

        Raises:
            InvalidRequestError: max_visual_tokens is below 1; on the wire 0 would mean no limit.
            ServiceError: The call failed, or its time was over before the answer was whole.
        """
        call = generate_call(ref, images, prompt, max_new_tokens, max_visual_tokens, history, sampling)
        reader = AnswerReader(self.timeout_s)
        for response in self._stream(call):
            reader.take(response)
        return reader.answer()

    def stream(
        self,
        ref: str,
        images: bytes | Sequence[bytes] | None,
        prompt: str,
        max_new_tokens: int,
        max_visual_tokens: int | None = None,
        *,
        history: Sequence[Turn] = (),
        sampling: Sampling | None = None,
    ) -> Iterator[GeneratedToken | Answer]:
        """As `generate`, token by token as they come; the whole answer is the last item."""
        call = generate_call(ref, images, prompt, max_new_tokens, max_visual_tokens, history, sampling)
        reader = AnswerReader(self.timeout_s)
        for response in self._stream(call):
            if token := reader.take(response):
                yield token
        yield reader.answer()
