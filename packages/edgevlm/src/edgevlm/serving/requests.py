"""What is asked of a model: a conversation with images, and the limits of the answer."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from PIL import Image

from edgevlm.errors import RequestError

ImageInput = bytes | Image.Image
Images = ImageInput | Sequence[ImageInput] | None
"""PNG or JPEG bytes or decoded images: none, one, or several."""

MAX_SEED = 2**63 - 1


@dataclass(frozen=True, kw_only=True, slots=True)
class Turn:
    """An earlier question with its answer; `num_images` of the conversation's images came with it."""

    question: str
    answer: str
    num_images: int = 0

    def __post_init__(self) -> None:
        if not self.question.strip():
            raise RequestError("history: expected a question in every turn, got an empty string")
        if self.num_images < 0:
            raise RequestError(f"history: num_images: expected at least 0, got {self.num_images}")


@dataclass(frozen=True, kw_only=True, slots=True)
class Sampling:
    """How the next token is chosen.

    Attributes:
        temperature: 0 takes the most likely token; otherwise logits are divided by it before a draw.
        top_p: A draw is among the fewest tokens whose probabilities sum to at least this, over 0 to 1.
        seed: Of this request's draws, which then do not depend on its neighbours; None: fresh ones.
    """

    temperature: float = 0.0
    top_p: float = 1.0
    seed: int | None = None

    def __post_init__(self) -> None:
        if not (math.isfinite(self.temperature) and self.temperature >= 0):
            raise RequestError(f"temperature: expected a finite number of at least 0, got {self.temperature}")
        if not 0 < self.top_p <= 1:
            raise RequestError(f"top_p: expected a number over 0 up to 1, got {self.top_p}")
        if self.seed is not None and not 0 <= self.seed <= MAX_SEED:
            raise RequestError(f"seed: expected 0 to {MAX_SEED}, got {self.seed}")


GREEDY = Sampling()


@dataclass(frozen=True, kw_only=True, slots=True)
class GenerationRequest:
    """One question.

    Attributes:
        prompt: The question, without chat markup.
        max_new_tokens: Longest answer, at least 1.
        images: All images of the conversation in their order; those that no turn of `history` has are the question's.
        history: Turns before the question.
        max_visual_tokens: Limit of visual tokens the language model sees, at least 1; None for none.
        deadline_s: `time.monotonic()` at which the answer ends where it is; None: never.
        sampling: How tokens are chosen.
    """

    prompt: str
    max_new_tokens: int
    images: Sequence[ImageInput] = ()
    history: Sequence[Turn] = ()
    max_visual_tokens: int | None = None
    deadline_s: float | None = None
    sampling: Sampling = GREEDY

    def __post_init__(self) -> None:
        for name, limit in (("max_new_tokens", self.max_new_tokens), ("max_visual_tokens", self.max_visual_tokens)):
            if limit is not None and limit < 1:
                raise RequestError(f"{name}: expected at least 1, got {limit}")
        if not self.prompt.strip():
            raise RequestError("prompt: expected a question, got an empty string")
        earlier = sum(turn.num_images for turn in self.history)
        if earlier > len(self.images):
            raise RequestError(f"history: expected turns with at most {len(self.images)} images, got {earlier}")

    @property
    def images_of_turns(self) -> tuple[int, ...]:
        """Number of images of each turn, the new question last."""
        earlier = [turn.num_images for turn in self.history]
        return (*earlier, len(self.images) - sum(earlier))


def as_images(images: Images) -> tuple[ImageInput, ...]:
    """None, one or several images as a tuple."""
    if images is None:
        return ()
    return (images,) if isinstance(images, bytes | Image.Image) else tuple(images)
