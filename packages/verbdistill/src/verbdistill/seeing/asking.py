"""Prompts that end where an answer begins, and how a model answers them."""

from collections.abc import Sequence
from typing import Any

from PIL.Image import Image
from torch import Tensor
from transformers import GenerationConfig

from verbdistill.data.rendering import chat_text, is_marked, tokenizer_of
from verbdistill.errors import BatchError
from vlmpress.data import Turn, chat_messages


def prompt_text(processor: Any, turns: Sequence[Turn], num_images: int) -> str:
    """A conversation in the chat template, without the last turn's answer.

    Raises:
        BatchError: There is no chat template.
    """
    messages = chat_messages(turns, num_images)[:-1]
    return chat_text(processor, messages, is_prompt=True, marked=is_marked(turns))


def encode(processor: Any, texts: Sequence[str], images: Sequence[Sequence[Image]]) -> dict[str, Tensor]:
    """Left-padded inputs [B, T] of prompts that all have images, or all have none.

    Raises:
        BatchError: The processor does not take them.
    """
    bos = tokenizer_of(processor).bos_token
    given: dict[str, Any] = {}
    if any(images):
        # Nested, processors of several images a row tell the rows apart by it; one image a row is understood by all.
        nested = max(map(len, images)) > 1
        given["images"] = [list(row) for row in images] if nested else [image for row in images for image in row]
    try:
        inputs = processor(
            text=list(texts),
            return_tensors="pt",
            padding=True,
            padding_side="left",
            # A template that writes the first token itself must not get it twice.
            add_special_tokens=not (bos and texts[0].startswith(bos)),
            **given,
        )
    except (ValueError, TypeError, LookupError, ArithmeticError, RuntimeError) as error:
        raise BatchError(f"prompt: expected what the processor takes, got {error}") from error
    return dict(inputs)


def end_tokens(model: Any, processor: Any) -> list[int]:
    """Tokens that end an answer."""
    ends = model.generation_config.eos_token_id
    if ends is None:
        ends = tokenizer_of(processor).eos_token_id
    return [] if ends is None else list(ends) if isinstance(ends, (list, tuple)) else [int(ends)]


def placeholders(model: Any) -> list[int]:
    """Tokens that stand for parts of images and videos in a prompt."""
    names = ("image_token_id", "video_token_id")
    return sorted({int(number) for name in names if (number := getattr(model.config, name, None)) is not None})


def search(
    model: Any, processor: Any, max_new_tokens: int, *, num_beams: int = 1, use_cache: bool = True
) -> GenerationConfig:
    """Greedy search or beams, free of what else a model's own generation settings ask for (penalties, sampling)."""
    ends = end_tokens(model, processor)
    pad = tokenizer_of(processor).pad_token_id
    if pad is None:
        pad = ends[0] if ends else 0
    return GenerationConfig(
        do_sample=False,
        num_beams=num_beams,
        max_new_tokens=max_new_tokens,
        use_cache=use_cache,
        eos_token_id=ends or None,
        pad_token_id=pad,
        # What is not said here a model's own settings would fill in.
        temperature=1.0,
        top_p=1.0,
        top_k=50,
        repetition_penalty=1.0,
        length_penalty=1.0,
        no_repeat_ngram_size=0,
        early_stopping=False,
        return_dict_in_generate=False,
    )
