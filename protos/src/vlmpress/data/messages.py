"""A conversation as the messages that Hugging Face chat templates take."""

from collections.abc import Sequence
from typing import Any

from vlmpress.data.records import IMAGE_MARK, Turn


def chat_messages(turns: Sequence[Turn], num_images: int, *, images_last: bool = False) -> list[dict[str, Any]]:
    """User and assistant messages with content parts {"type": "image"} and {"type": "text", "text": ...}.

    Images stand where the questions' marks say. Without marks they all stand before the first question, or
    behind it with `images_last`.
    """
    marked = num_images > 0 and any(IMAGE_MARK in turn.question for turn in turns)
    messages: list[dict[str, Any]] = []
    for number, turn in enumerate(turns):
        text: list[dict[str, str]] = [{"type": "text", "text": turn.question}]
        images = [{"type": "image"}] * (num_images if number == 0 else 0)
        free = [*text, *images] if images_last else [*images, *text]
        messages.append({"role": "user", "content": _split(turn.question) if marked else free})
        messages.append({"role": "assistant", "content": [{"type": "text", "text": turn.answer}]})
    return messages


def _split(question: str) -> list[dict[str, str]]:
    parts: list[dict[str, str]] = []
    for place, piece in enumerate(question.split(IMAGE_MARK)):
        if place:
            parts.append({"type": "image"})
        if piece:
            parts.append({"type": "text", "text": piece})
    return parts
