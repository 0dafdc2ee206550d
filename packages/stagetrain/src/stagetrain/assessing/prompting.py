"""Makes left-padded batches of questions, ready for an answer, through the chat template that serving uses."""

from collections.abc import Sequence
from typing import Any

import torch

from stagetrain.assessing.questions import Question
from stagetrain.errors import TemplateError
from stagetrain.samples.images import read_image
from vlmpress.data import IMAGE_MARK, chat_messages


def encode(processor: Any, questions: Sequence[Question]) -> dict[str, torch.Tensor]:
    """Model inputs [B, T] of questions that all have images, or all have none.

    Raises:
        TemplateError: There is no chat template.
        ImageUnreadableError: An image file is missing or no image.
    """
    texts = [prompt_text(processor, question) for question in questions]
    images = [[read_image(path) for path in question.images] for question in questions]
    bos = getattr(processor.tokenizer, "bos_token", None)
    given: dict[str, Any] = {}
    if any(images):
        # Nested, processors of several images a row tell the rows apart by it; one image a row is understood by all.
        given["images"] = images if max(map(len, images)) > 1 else [image for row in images for image in row]
    inputs = processor(
        text=texts,
        return_tensors="pt",
        padding=True,
        padding_side="left",
        # A template that writes the first token itself must not get it twice.
        add_special_tokens=not (bos and texts[0].startswith(bos)),
        **given,
    )
    return dict(inputs)


def prompt_text(processor: Any, question: Question) -> str:
    """The conversation in the chat template, ending where the answer begins.

    A tokenizer's template knows text alone, and gets images as their tokens.

    Raises:
        TemplateError: There is no chat template.
    """
    messages = chat_messages(question.turns, len(question.images))[:-1]
    templated = processor if getattr(processor, "chat_template", None) else processor.tokenizer
    if not getattr(templated, "chat_template", None):
        raise TemplateError("chat template: expected the processor or its tokenizer to have one, got none")
    if templated is not processor:
        between = "" if any(IMAGE_MARK in turn.question for turn in question.turns) else "\n"
        for message in messages:
            message["content"] = between.join(part.get("text", processor.image_token) for part in message["content"])
    return str(templated.apply_chat_template(messages, add_generation_prompt=True, tokenize=False))
