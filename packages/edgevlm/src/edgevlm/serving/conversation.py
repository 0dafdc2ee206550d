"""A conversation with a model: its turns and images are part of every next question."""

from collections.abc import Iterator, Sequence

from edgevlm.serving.engine import Engine
from edgevlm.serving.events import Finish, GenerationEvent
from edgevlm.serving.images import decode_image
from edgevlm.serving.requests import GREEDY, Sampling, Turn


class Conversation:
    """Asks an engine and remembers what it answered.

    Args:
        engine: Answers.
        images: PNG or JPEG bytes that come with the first question.
        max_new_tokens: Longest answer.
        max_visual_tokens: As in `Engine.generate`.
        sampling: As in `Engine.generate`.

    Raises:
        ImageError: An image is refused.
    """

    def __init__(
        self,
        engine: Engine,
        images: Sequence[bytes] = (),
        *,
        max_new_tokens: int,
        max_visual_tokens: int | None = None,
        sampling: Sampling = GREEDY,
    ) -> None:
        self._engine = engine
        self._first_images = tuple(images)
        self._max_new_tokens = max_new_tokens
        self._max_visual_tokens = max_visual_tokens
        self._sampling = sampling
        for image in images:
            decode_image(image)
        self.reset()

    @property
    def turns(self) -> tuple[Turn, ...]:
        """Questions answered so far."""
        return tuple(self._turns)

    @property
    def num_images(self) -> int:
        """Images so far, those that wait for the next question included."""
        return len(self._images)

    def reset(self) -> None:
        """Begins anew, with the images of the beginning."""
        self._turns: list[Turn] = []
        self._images = list(self._first_images)

    def add_image(self, data: bytes) -> None:
        """Shows one more image with the next question.

        Raises:
            ImageError: It is refused; the conversation stays as it was.
        """
        decode_image(data)
        self._images.append(data)

    def ask(self, prompt: str) -> Iterator[GenerationEvent]:
        """Streams the answer; a turn is remembered once it has ended, and no other one.

        Raises:
            RequestError: The question is refused; the conversation stays as it was.
        """
        events = self._engine.generate(
            self._images,
            prompt,
            self._max_new_tokens,
            self._max_visual_tokens,
            history=self._turns,
            sampling=self._sampling,
        )
        return self._remembered(prompt, events, len(self._images) - sum(turn.num_images for turn in self._turns))

    def _remembered(self, prompt: str, events: Iterator[GenerationEvent], num_images: int) -> Iterator[GenerationEvent]:
        for event in events:
            if isinstance(event, Finish):
                self._turns.append(Turn(question=prompt, answer=event.text, num_images=num_images))
            yield event
