"""Turns a conversation into tokens and labels through the chat template that serving uses."""

from dataclasses import dataclass
from typing import Any

from stagetrain.errors import SampleError, TemplateError
from vlmpress.data import IMAGE_MARK, Turn, chat_messages

IGNORED = -100
"""Label of a token that the loss leaves out."""

CACHED_TEXTS = 4096


@dataclass(frozen=True, slots=True)
class Rendered:
    """Token ids of one conversation, one token for each image.

    Attributes:
        tokens: Questions and answers and what the template puts around them.
        labels: One label for each token: its id where it is part of an answer, else IGNORED.
        marks: Positions of the tokens that stand for images.
    """

    tokens: tuple[int, ...]
    labels: tuple[int, ...]
    marks: tuple[int, ...]


_Key = tuple[tuple[Turn, ...], int, bool]


class Renderer:
    """Renders conversations; the tokens of a text that comes again soon are made once.

    Args:
        processor: A Hugging Face processor with a tokenizer and a chat template of its own or its tokenizer's.
    """

    def __init__(self, processor: Any) -> None:
        self._processor = processor
        self._tokenizer = processor.tokenizer
        self._image_token_id = int(processor.image_token_id)
        self._kept: dict[_Key, Rendered] = {}

    def render(self, turns: tuple[Turn, ...], num_images: int, *, images_last: bool = False) -> Rendered:
        """Tokens and labels of a conversation; arguments as `vlmpress.data.chat_messages`.

        Raises:
            SampleError: An answer is empty.
            TemplateError: The prompt is not the beginning of the full text, or an image's mark is not there once.
        """
        key = turns, num_images, images_last
        if key not in self._kept:
            if len(self._kept) >= CACHED_TEXTS:
                self._kept.clear()
            self._kept[key] = self._render(*key)
        return self._kept[key]

    def _render(self, turns: tuple[Turn, ...], num_images: int, images_last: bool) -> Rendered:
        messages = self._messages(turns, num_images, images_last)
        full = self._encode(messages, prompt=False)
        labels = [IGNORED] * len(full)
        for number, turn in enumerate(turns):
            if not turn.answer.strip():
                raise SampleError(f"question {turn.question!r}: expected an answer, got an empty one")
            start = self._end_of(self._encode(messages[: 2 * number + 1], prompt=True), full, turn)
            end = self._end_of(self._encode(messages[: 2 * number + 2], prompt=False), full, turn)
            end = self._stop(full, start, end)
            if end <= start:
                raise SampleError(
                    f"question {turn.question!r}: expected answer {turn.answer!r} to have tokens, got none"
                )
            labels[start:end] = full[start:end]
        marks = [position for position, token in enumerate(full) if token == self._image_token_id]
        self._check(turns, labels, marks, num_images, images_last)
        return Rendered(tuple(full), tuple(labels), tuple(marks))

    def _check(
        self, turns: tuple[Turn, ...], labels: list[int], marks: list[int], num_images: int, images_last: bool
    ) -> None:
        question = turns[0].question
        if len(marks) != num_images:
            raise TemplateError(f"question {question!r}: expected {num_images} image marks, got {len(marks)}")
        # What comes directly behind the images has nothing before it in a packed row.
        border = marks[-1] + 1 if marks and not images_last and not is_marked(turns) else 0
        if any(label != IGNORED for label in labels[: border + 1]):
            raise TemplateError(f"question {question!r}: expected the image before the question's text, got it behind")

    def _encode(self, messages: list[dict[str, Any]], prompt: bool) -> list[int]:
        templated = self._processor if getattr(self._processor, "chat_template", None) else self._tokenizer
        text = str(templated.apply_chat_template(messages, tokenize=False, add_generation_prompt=prompt))
        bos = self._tokenizer.bos_token
        # As the processor does it: a template that writes the first special token itself gets no second one.
        special = bos is None or not text.startswith(bos)
        return list(self._tokenizer(text, add_special_tokens=special)["input_ids"])

    def _messages(self, turns: tuple[Turn, ...], num_images: int, images_last: bool) -> list[dict[str, Any]]:
        messages = chat_messages(turns, num_images, images_last=images_last)
        if getattr(self._processor, "chat_template", None):
            return messages
        # A tokenizer's template knows text alone.
        between = "" if is_marked(turns) else "\n"
        pieces = [[part.get("text", self._processor.image_token) for part in one["content"]] for one in messages]
        return [
            {"role": one["role"], "content": between.join(texts)} for one, texts in zip(messages, pieces, strict=True)
        ]

    @staticmethod
    def _end_of(part: list[int], full: list[int], turn: Turn) -> int:
        if full[: len(part)] != part:
            raise TemplateError(
                f"chat template: expected the tokens before the answer to question {turn.question!r} to begin the"
                f" whole conversation, got {len(part)} tokens that do not"
            )
        return len(part)

    def _stop(self, full: list[int], start: int, end: int) -> int:
        """Position behind the answer's end token, which some templates follow with white space."""
        stop = self._tokenizer.eos_token_id
        return full.index(stop, start, end) + 1 if stop in full[start:end] else end

    def __getstate__(self) -> dict[str, object]:
        return {**self.__dict__, "_kept": {}}


def is_marked(turns: tuple[Turn, ...]) -> bool:
    """Whether the questions say where their images go."""
    return any(IMAGE_MARK in turn.question for turn in turns)
