"""A conversation as the tokens that serving makes, and which of them are answers."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from verbdistill.errors import BatchError
from verbdistill.models.states import IGNORED
from vlmpress.data import IMAGE_MARK, Record, Turn, chat_messages


@dataclass(frozen=True, slots=True)
class Rendered:
    """One conversation.

    Attributes:
        tokens: Ids; an image is one token.
        labels: Ids of answers and of the token that ends them, IGNORED elsewhere.
        marks: Places of the images' tokens.
    """

    tokens: list[int]
    labels: list[int]
    marks: list[int]


def render(record: Record, processor: Any) -> Rendered:
    """The whole conversation in the chat template, without what an image expands to.

    Args:
        record: The conversation.
        processor: A Hugging Face processor, or a tokenizer for conversations without images.

    Raises:
        BatchError: The chat template is missing, rewrites earlier turns or does not give every image its mark, or an
            answer is empty.
    """
    messages = chat_messages(record.turns, len(record.images))
    marked = is_marked(record.turns)
    full = _tokens(messages, processor, is_prompt=False, marked=marked)
    labels = [IGNORED] * len(full)
    for number, turn in enumerate(record.turns):
        start = _length(_tokens(messages[: 2 * number + 1], processor, is_prompt=True, marked=marked), full, record)
        end = _length(_tokens(messages[: 2 * number + 2], processor, is_prompt=False, marked=marked), full, record)
        end = _behind_stop(full, start, end, tokenizer_of(processor).eos_token_id)
        if not turn.answer.strip() or end <= start:
            raise BatchError(f"record {record.id}: question {turn.question!r}: expected an answer, got an empty one")
        labels[start:end] = full[start:end]
    mark = getattr(processor, "image_token_id", None)
    marks = [place for place, token in enumerate(full) if token == mark]
    if len(marks) != len(record.images):
        raise BatchError(
            f"record {record.id}: expected the chat template to give {len(record.images)} image marks, got {len(marks)}"
        )
    return Rendered(full, labels, marks)


def tokenizer_of(processor: Any) -> Any:
    """The tokenizer of a processor; a tokenizer itself."""
    return getattr(processor, "tokenizer", processor)


def chat_text(processor: Any, messages: Sequence[dict[str, Any]], *, is_prompt: bool, marked: bool) -> str:
    """Messages in the chat template of the processor, else of its tokenizer, which gets images as their tokens.

    Args:
        processor: A processor or a tokenizer.
        messages: As `vlmpress.data.chat_messages` makes them.
        is_prompt: Whether the beginning of an answer follows.
        marked: Whether the questions say where their images go; else images are lines of their own in a template
            of text alone.

    Raises:
        BatchError: There is no chat template.
    """
    tokenizer = tokenizer_of(processor)
    templated = processor if getattr(processor, "chat_template", None) else tokenizer
    if not getattr(templated, "chat_template", None):
        raise BatchError("chat template: expected the processor or its tokenizer to have one, got none")
    if templated is tokenizer:
        image, between = getattr(processor, "image_token", ""), "" if marked else "\n"
        messages = [
            one | {"content": between.join(part.get("text", image) for part in one["content"])} for one in messages
        ]
    return str(templated.apply_chat_template(list(messages), add_generation_prompt=is_prompt, tokenize=False))


def _tokens(messages: Sequence[dict[str, Any]], processor: Any, *, is_prompt: bool, marked: bool) -> list[int]:
    tokenizer = tokenizer_of(processor)
    text = chat_text(processor, messages, is_prompt=is_prompt, marked=marked)
    # A template that writes the first token itself must not get it twice.
    is_begun = tokenizer.bos_token is not None and text.startswith(tokenizer.bos_token)
    return list(tokenizer(text, add_special_tokens=not is_begun)["input_ids"])


def is_marked(turns: Sequence[Turn]) -> bool:
    """Whether the questions say where their images go."""
    return any(IMAGE_MARK in turn.question for turn in turns)


def _length(part: list[int], full: list[int], record: Record) -> int:
    if full[: len(part)] != part:
        raise BatchError(
            f"record {record.id}: expected a chat template that only appends, got rewritten turns or a token across "
            "the beginning of an answer"
        )
    return len(part)


def _behind_stop(full: list[int], start: int, end: int, stop: int | None) -> int:
    """Some templates put white space behind the token that ends an answer; no model is asked for that."""
    return full.index(stop, start, end) + 1 if stop in full[start:end] else end


def shortened(record: Record, num_turns: int) -> Record:
    """The first turns of a conversation, and the images that they mark."""
    turns = record.turns[:num_turns]
    num_marks = [sum(turn.question.count(IMAGE_MARK) for turn in part) for part in (record.turns, turns)]
    images = record.images[: num_marks[1]] if num_marks[0] else record.images
    return Record(id=record.id, images=images, turns=turns, split=record.split)
