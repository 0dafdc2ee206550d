"""One request on its way through the model."""

from typing import Any

from edgevlm.serving.events import Finish, FinishReason, GeneratedToken
from edgevlm.serving.loaded_model import LoadedModel
from edgevlm.serving.preparing import Prepared
from edgevlm.serving.sampling import Sampler
from edgevlm.serving.text_stream import TextStream


class Row:
    """State of a request: how far it is, and its cache while that is its own.

    Attributes:
        handle: Number of the request.
        prepared: What is asked.
        sampler: Chooses its tokens.
        cache: Of its prefill; None before it and where the row shares a batch's.
        last_token: Newest token, which the model has not seen yet.
        ended: Why no token follows; None while some may.
    """

    def __init__(self, handle: int, prepared: Prepared, engine: LoadedModel) -> None:
        self.handle = handle
        self.prepared = prepared
        self.sampler = Sampler(prepared.sampling, engine.model.device)
        self.cache: Any = None
        self.last_token = -1
        self.ended: FinishReason | None = None
        self._engine = engine
        self._stream = TextStream(engine.processor.tokenizer)
        self._num_generated = 0
        self._num_prompt = 0
        self._num_visual = 0

    def begin(self, cache: Any) -> None:
        """The model has just seen the prompt."""
        self.cache = cache
        self._num_visual = self._engine.count_visual(self.prepared)
        self._num_prompt = self.prepared.num_tokens - self.prepared.num_placeholders + self._num_visual

    def take(self, token_id: int) -> GeneratedToken:
        """The event of one more token."""
        self.last_token = token_id
        self._num_generated += 1
        if token_id in self._engine.eos_token_ids:
            self.ended = FinishReason.STOP
        elif self._num_generated == self.prepared.max_new_tokens:
            self.ended = FinishReason.LENGTH
        return GeneratedToken(id=token_id, text=self._stream.push(token_id, last=self.ended is not None))

    def finish(self, reason: FinishReason) -> Finish:
        """The event of the end."""
        return Finish(
            reason=reason,
            num_prompt_tokens=self._num_prompt,
            num_visual_tokens=self._num_visual,
            num_generated_tokens=self._num_generated,
            text=self._stream.text,
        )
