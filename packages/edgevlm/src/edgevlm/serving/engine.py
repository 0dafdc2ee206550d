"""Serves any image-text-to-text model directory, one request at a time."""

from collections.abc import Iterator, Sequence

from edgevlm.serving.batching import Batcher
from edgevlm.serving.events import Failed, GenerationEvent
from edgevlm.serving.loaded_model import LoadedModel
from edgevlm.serving.preparing import Prepared
from edgevlm.serving.requests import GREEDY, GenerationRequest, Images, Sampling, Turn, as_images


class Engine(LoadedModel):
    """A model that answers; `Batcher` lets it answer many requests at once."""

    def generate(
        self,
        images: Images,
        prompt: str,
        max_new_tokens: int,
        max_visual_tokens: int | None = None,
        *,
        history: Sequence[Turn] = (),
        deadline_s: float | None = None,
        sampling: Sampling = GREEDY,
    ) -> Iterator[GenerationEvent]:
        """Streams the answer: a GeneratedToken for each token, the end token included, then one Finish.

        A request is checked here, before the first event is asked for; only a token reducer finds out
        with the first event that it cannot hold a limit. Generation also ends, with reason LENGTH,
        where the model's positions end.

        Args:
            images: PNG or JPEG bytes, or a decoded image; several of them; None for a text-only question.
            prompt: The question, without chat markup.
            max_new_tokens: Longest answer, at least 1.
            max_visual_tokens: Limit of visual tokens the language model sees, at least 1; None for none.
                An attached token reducer makes the images fit. Without one, a limit below what they
                need is refused.
            history: Turns before this question; their images come first in `images`.
            deadline_s: `time.monotonic()` at which the answer ends where it is, with reason DEADLINE.
            sampling: How tokens are chosen; the likeliest ones by default.

        Raises:
            ImageError: The image bytes are refused.
            RequestError: The prompt or a limit is refused.
        """
        request = GenerationRequest(
            prompt=prompt,
            max_new_tokens=max_new_tokens,
            images=as_images(images),
            history=tuple(history),
            max_visual_tokens=max_visual_tokens,
            deadline_s=deadline_s,
            sampling=sampling,
        )
        return self._events(self.prepare_request(request))

    def _events(self, prepared: Prepared) -> Iterator[GenerationEvent]:
        batcher = Batcher(self, max_batch_size=1)
        batcher.submit(prepared)
        while batcher.has_work:
            for _, event in batcher.step():
                if isinstance(event, Failed):
                    raise event.error
                yield event
