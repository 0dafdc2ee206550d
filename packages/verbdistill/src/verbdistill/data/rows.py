"""One conversation as a row of a batch, and rows as a batch."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from verbdistill.data.placeholders import EncodedImage, encode_images, merge_images
from verbdistill.data.rendering import render, shortened, tokenizer_of
from verbdistill.errors import BatchError
from verbdistill.models.states import IGNORED
from vlmpress.data import Record


@dataclass(frozen=True, slots=True)
class Row:
    """A conversation for one model; `tokens` and `labels` of the same length."""

    tokens: list[int]
    labels: list[int]
    images: list[EncodedImage]


class RowMaker:
    """Makes rows with the processor of one model."""

    def __init__(self, processor: Any, max_length: int | None) -> None:
        """Takes a processor (a tokenizer for text alone) and the most tokens of a row, images included.

        Raises:
            BatchError: The limit is below 2.
        """
        if max_length is not None and max_length < 2:
            raise BatchError(f"max_length: expected at least 2, got {max_length}")
        self._processor = processor
        self._max_length = max_length

    def row(self, record: Record) -> Row | None:
        """The row of a conversation; None if it is too long.

        Raises:
            BatchError: The conversation or an image cannot be used.
        """
        rendered = render(record, self._processor)
        tokens: list[int] = []
        labels: list[int] = []
        images = encode_images(record.images, self._processor)
        done = 0
        for mark, image in zip(rendered.marks, images, strict=True):
            tokens += rendered.tokens[done:mark] + image.tokens
            labels += rendered.labels[done:mark] + [IGNORED] * len(image.tokens)
            done = mark + 1
        tokens += rendered.tokens[done:]
        labels += rendered.labels[done:]
        is_long = self._max_length is not None and len(tokens) > self._max_length
        return None if is_long else Row(tokens, labels, images)

    def batch(self, rows: Sequence[Row]) -> dict[str, Tensor]:
        """Rows padded on the right.

        Returns:
            input_ids, labels and attention_mask, int64 [B, T]; mm_token_type_ids [B, T] where the processor makes them;
            the images' tensors. No positions: models make their own.

        Raises:
            BatchError: Images differ in shape where the model needs them equal.
        """
        length = max(len(row.tokens) for row in rows)
        pad = tokenizer_of(self._processor).pad_token_id or 0
        batch = {
            "input_ids": torch.tensor([_filled(row.tokens, length, pad) for row in rows]),
            "labels": torch.tensor([_filled(row.labels, length, IGNORED) for row in rows]),
            "attention_mask": torch.tensor([_filled([1] * len(row.tokens), length, 0) for row in rows]),
        }
        if getattr(self._processor, "return_mm_token_type_ids", False):
            types = self._processor.create_mm_token_type_ids(batch["input_ids"].tolist())
            batch["mm_token_type_ids"] = torch.tensor(types)
        return batch | merge_images([row.images for row in rows])


def fitting_rows(record: Record, makers: Sequence[RowMaker]) -> list[Row] | None:
    """A row of each maker for as many leading turns as fit all of them; None if not even one turn does."""
    for num_turns in range(len(record.turns), 0, -1):
        rows = [maker.row(shortened(record, num_turns)) for maker in makers]
        if all(row is not None for row in rows):
            return [row for row in rows if row is not None]
    return None


def _filled(values: list[int], length: int, value: int) -> list[int]:
    return values + [value] * (length - len(values))
