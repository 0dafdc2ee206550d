"""Turns an image and a question into the tensors a model's processor makes."""

from typing import Any

import torch
from PIL import Image

from edgevlm.errors import RequestError


def chat_text(processor: Any, prompt: str, *, has_image: bool) -> str:
    """The prompt in the chat template, ready for an answer; without a template, image token and prompt.

    A template that never speaks of images is a language model's own: it takes the message as one string.
    """
    plain = f"{image_token(processor)}\n{prompt}" if has_image else prompt
    tokenizer = processor.tokenizer
    templated = processor if getattr(processor, "chat_template", None) else tokenizer
    template = getattr(templated, "chat_template", None)
    if not template:
        return plain
    content: Any = plain
    if "image" in str(template):
        content = [*([{"type": "image"}] if has_image else []), {"type": "text", "text": prompt}]
    messages = [{"role": "user", "content": content}]
    return str(templated.apply_chat_template(messages, add_generation_prompt=True, tokenize=False))


def encode(processor: Any, image: Image.Image | None, prompt: str) -> dict[str, torch.Tensor]:
    """Model inputs of one request at batch 1.

    The attention mask is left out: one unpadded row needs none.

    Raises:
        RequestError: The prompt is empty, or contains the image placeholder.
    """
    if not prompt.strip():
        raise RequestError("prompt: expected a question, got an empty string")
    if image_token(processor) in prompt:
        raise RequestError(f"prompt: expected text without {image_token(processor)!r}, got {prompt[:80]!r}")
    text = chat_text(processor, prompt, has_image=image is not None)
    bos = getattr(processor.tokenizer, "bos_token", None)
    inputs = processor(
        text=[text],
        images=None if image is None else [image],
        return_tensors="pt",
        # A template that writes the first token itself must not get it twice.
        add_special_tokens=not (bos and text.startswith(bos)),
    )
    return {name: value for name, value in inputs.items() if name != "attention_mask"}


def image_token(processor: Any) -> str:
    """The text that stands for an image in a prompt."""
    return str(getattr(processor, "image_token", "<image>"))
