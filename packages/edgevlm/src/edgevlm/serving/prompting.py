"""Turns a conversation with images into the tensors a model's processor makes."""

from collections.abc import Sequence
from typing import Any

import torch
from PIL import Image

from edgevlm.errors import RequestError
from edgevlm.serving.requests import Turn


def chat_text(
    processor: Any, prompt: str, *, history: Sequence[Turn] = (), images_of_turns: Sequence[int] = (0,)
) -> str:
    """The conversation in the chat template, ready for an answer; without a template, image tokens and texts by line.

    A template that never speaks of images is a language model's own: it takes each message as one string.

    Args:
        processor: With its tokenizer and maybe a template.
        prompt: The new question.
        history: Turns before it.
        images_of_turns: Number of images of each turn, the new question's last.
    """
    token, templated = image_token(processor), processor
    if not getattr(processor, "chat_template", None):
        templated = processor.tokenizer
    template = getattr(templated, "chat_template", None)
    questions = [turn.question for turn in history] + [prompt]
    plain = [f"{token}\n" * count + text for text, count in zip(questions, images_of_turns, strict=True)]
    answers = [turn.answer for turn in history]
    if not template:
        earlier = [line for turn in zip(plain[:-1], answers, strict=True) for line in turn]
        return "\n".join([*earlier, plain[-1]])
    in_parts = "image" in str(template)
    messages: list[dict[str, Any]] = []
    for number, question in enumerate(questions):
        parts = [{"type": "image"}] * images_of_turns[number] + [{"type": "text", "text": question}]
        messages.append({"role": "user", "content": parts if in_parts else plain[number]})
        if number < len(answers):
            answer: Any = [{"type": "text", "text": answers[number]}] if in_parts else answers[number]
            messages.append({"role": "assistant", "content": answer})
    return str(templated.apply_chat_template(messages, add_generation_prompt=True, tokenize=False))


def encode(
    processor: Any,
    images: Sequence[Image.Image],
    prompt: str,
    *,
    history: Sequence[Turn] = (),
    images_of_turns: Sequence[int] | None = None,
) -> dict[str, torch.Tensor]:
    """Model inputs of one conversation at batch 1; as in `chat_text`, by default all images with the new question.

    The attention mask is left out: one unpadded row needs none.

    Raises:
        RequestError: A text contains the image placeholder, or the template does not hold the conversation.
    """
    token = image_token(processor)
    for text in (prompt, *(text for turn in history for text in (turn.question, turn.answer))):
        if token in text:
            raise RequestError(f"prompt: expected text without {token!r}, got {text[:80]!r}")
    if images_of_turns is None:
        images_of_turns = (*(turn.num_images for turn in history), len(images))
    text = chat_text(processor, prompt, history=history, images_of_turns=images_of_turns)
    if text.count(token) != len(images) or (history and prompt.strip() not in text):
        raise RequestError(
            f"chat template: expected one for {len(history)} earlier turns and {len(images)} images, "
            f"got {text.count(token)} image placeholders in {text[:80]!r}"
        )
    bos = getattr(processor.tokenizer, "bos_token", None)
    inputs = processor(
        text=[text],
        images=list(images) or None,
        return_tensors="pt",
        # A template that writes the first token itself must not get it twice.
        add_special_tokens=not (bos and text.startswith(bos)),
    )
    return {name: value for name, value in inputs.items() if name != "attention_mask"}


def image_token(processor: Any) -> str:
    """The text that stands for an image in a prompt."""
    return str(getattr(processor, "image_token", "<image>"))
