"""Turns a record into tokens and labels through the chat template that serving uses."""

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from stagetrain.errors import SampleError, TemplateError
from vlmpress.data import Record, Turn

IGNORED = -100
"""Label of a token that the loss leaves out."""

CACHED_TEXTS = 1 << 16


@dataclass(frozen=True, slots=True)
class Rendered:
    """Token ids of one conversation, cut behind the last image placeholder.

    Attributes:
        prefix: Everything through the last image placeholder; empty without an image.
        tokens: The rest: questions and answers.
        labels: One label for each of `tokens`: its id where it is part of an answer, else IGNORED.
    """

    prefix: tuple[int, ...]
    tokens: tuple[int, ...]
    labels: tuple[int, ...]


class Renderer:
    """Renders records; the tokens of a distinct text are made once.

    Args:
        processor: A Hugging Face processor with a tokenizer and a chat template of its own or its tokenizer's.
        num_image_tokens: Placeholders one image takes in the sequence.
    """

    def __init__(self, processor: Any, num_image_tokens: int) -> None:
        self._processor = processor
        self._tokenizer = processor.tokenizer
        self._num_image_tokens = num_image_tokens
        self._image_token_id = int(processor.image_token_id)
        self._cached = lru_cache(maxsize=CACHED_TEXTS)(self._render)

    def render(self, record: Record) -> Rendered:
        """Tokens and labels of a record.

        Raises:
            SampleError: An answer is empty or the conversation is longer than the tokenizer's model_max_length.
            TemplateError: The prompt is not the beginning of the full text, or the image's mark is not there once.
        """
        return self._cached(record.turns, record.image is not None)

    def _render(self, turns: tuple[Turn, ...], has_image: bool) -> Rendered:
        full = self._encode(turns, has_image, prompt=False)
        labels = [IGNORED] * len(full)
        for count, turn in enumerate(turns, 1):
            if not turn.answer.strip():
                raise SampleError(f"question {turn.question!r}: expected an answer, got an empty one")
            start = self._end_of(self._encode(turns[:count], has_image, prompt=True), full, turn)
            end = self._end_of(self._encode(turns[:count], has_image, prompt=False), full, turn)
            end = self._stop(full, start, end)
            if end <= start:
                raise SampleError(
                    f"question {turn.question!r}: expected answer {turn.answer!r} to have tokens, got none"
                )
            labels[start:end] = full[start:end]
        return self._cut(full, labels, turns[0].question, has_image)

    def _encode(self, turns: tuple[Turn, ...], has_image: bool, prompt: bool) -> list[int]:
        text = self._text(turns, has_image, prompt)
        bos = self._tokenizer.bos_token
        # As the processor does it: a template that writes the first special token itself gets no second one.
        special = bos is None or not text.startswith(bos)
        return list(self._tokenizer(text, add_special_tokens=special)["input_ids"])

    def _text(self, turns: tuple[Turn, ...], has_image: bool, prompt: bool) -> str:
        templated = self._processor if getattr(self._processor, "chat_template", None) else self._tokenizer
        messages: list[dict[str, Any]] = []
        for position, turn in enumerate(turns):
            image = has_image and position == 0
            if templated is self._processor:
                parts = [{"type": "image"}] if image else []
                question: Any = [*parts, {"type": "text", "text": turn.question}]
                answer: Any = [{"type": "text", "text": turn.answer}]
            else:
                mark = f"{self._processor.image_token}\n" if image else ""
                question, answer = mark + turn.question, turn.answer
            messages.append({"role": "user", "content": question})
            messages.append({"role": "assistant", "content": answer})
        if prompt:
            messages.pop()
        return str(templated.apply_chat_template(messages, tokenize=False, add_generation_prompt=prompt))

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

    def _cut(self, full: list[int], labels: list[int], question: str, has_image: bool) -> Rendered:
        marks = [position for position, token in enumerate(full) if token == self._image_token_id]
        if len(marks) != int(has_image):
            raise TemplateError(f"question {question!r}: expected {int(has_image)} image marks, got {len(marks)}")
        border = marks[0] + 1 if marks else 0
        if any(label != IGNORED for label in labels[: border + 1]):
            raise TemplateError(f"question {question!r}: expected the image before the question's text, got it behind")
        prefix = full[: border - 1] + [self._image_token_id] * self._num_image_tokens if marks else []
        length, limit = len(prefix) + len(full) - border, self._tokenizer.model_max_length
        if length > limit:
            raise SampleError(f"question {question!r}: expected at most {limit} tokens, got {length}")
        return Rendered(tuple(prefix), tuple(full[border:]), tuple(labels[border:]))
