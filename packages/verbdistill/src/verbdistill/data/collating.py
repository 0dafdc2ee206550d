"""Right-padded batches of dataset records, keyed on the step."""

import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from verbdistill.errors import BatchError
from verbdistill.models.states import IGNORED
from vlmpress.data import Record, chat_messages

Row = tuple[Tensor, Tensor, Tensor]
"""Token ids [T], labels [T], pixel values [num_images, 3, H, W]."""


class RecordBatches:
    """Universal batches of whole conversations, one a row; the same step always gives the same batch.

    The records are shuffled anew in every pass over them. Packing several questions of an image into one row
    is the training package's business.
    """

    def __init__(self, records: Sequence[Record], processor: Any, *, batch_size: int, seed: int) -> None:
        """Keeps the records with an image.

        Raises:
            BatchError: There is none, or the batch size is below 1.
        """
        self._records = [record for record in records if record.images]
        if not self._records or batch_size < 1:
            raise BatchError(
                f"data: expected records with images and a batch size of at least 1, got {len(self._records)} "
                f"and {batch_size}"
            )
        self._processor = processor
        self._batch_size = batch_size
        self._seed = seed
        self._order: tuple[int, list[int]] = (-1, [])

    def __call__(self, step: int) -> dict[str, Tensor]:
        """The batch of a global step, 0-based.

        Raises:
            BatchError: An image cannot be read.
        """
        positions = range(step * self._batch_size, (step + 1) * self._batch_size)
        rows = [self._row(self._records[self._shuffled(position)]) for position in positions]
        return _padded(rows, self._pad_id)

    @property
    def _pad_id(self) -> int:
        return int(self._processor.tokenizer.pad_token_id or 0)

    def _shuffled(self, position: int) -> int:
        epoch, place = divmod(position, len(self._records))
        if self._order[0] != epoch:
            order = list(range(len(self._records)))
            random.Random(self._seed * 1_000_003 + epoch).shuffle(order)
            self._order = (epoch, order)
        return self._order[1][place]

    def _row(self, record: Record) -> Row:
        images = [_image(path) for path in record.images]
        ids: list[int] = []
        labels: list[int] = []
        pixels: list[Tensor] = []
        for number, (segment, is_answer) in enumerate(_segments(record, self._processor)):
            # The processor turns image marks into placeholders.
            count = 0 if is_answer else segment.count(self._processor.image_token)
            if count:
                own, images = images[:count], images[count:]
                special = {} if number == 0 else {"add_special_tokens": False}
                encoded = self._processor(images=own, text=segment, return_tensors="pt", **special)
                pixels.append(encoded["pixel_values"])
                tokens = encoded["input_ids"][0].tolist()
            else:
                tokens = self._processor.tokenizer(segment, add_special_tokens=number == 0)["input_ids"]
            ids += tokens
            labels += tokens if is_answer else [IGNORED] * len(tokens)
        return torch.tensor(ids), torch.tensor(labels), torch.cat(pixels)


def _image(path: Path) -> Image.Image:
    try:
        with Image.open(path) as file:
            return file.convert("RGB")
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise BatchError(f"{path}: expected a readable image, got {error}") from error


def _segments(record: Record, processor: Any) -> list[tuple[str, bool]]:
    """The conversation's text cut where answers begin and end: (text, whether it is an answer).

    Raises:
        BatchError: The chat template rewrites earlier turns, so that answers cannot be found in its text.
    """
    messages = chat_messages(record.turns, len(record.images))
    done, segments = "", []
    for end in range(2, len(messages) + 1, 2):
        asked = processor.apply_chat_template(messages[: end - 1], add_generation_prompt=True)
        answered = processor.apply_chat_template(messages[:end])
        if not (asked.startswith(done) and answered.startswith(asked)):
            raise BatchError(f"record {record.id}: expected a chat template that only appends, got rewritten turns")
        segments += [(asked[len(done) :], False), (answered[len(asked) :], True)]
        done = answered
    return segments


def _padded(rows: Sequence[Row], pad_id: int) -> dict[str, Tensor]:
    length = max(len(ids) for ids, _, _ in rows)
    shape = (len(rows), length)
    batch = {
        "input_ids": torch.full(shape, pad_id),
        "labels": torch.full(shape, IGNORED),
        "attention_mask": torch.zeros(shape, dtype=torch.long),
        "position_ids": torch.arange(length).expand(shape).contiguous(),
        "pixel_values": torch.cat([pixels for _, _, pixels in rows]),
    }
    for place, (ids, labels, _) in enumerate(rows):
        batch["input_ids"][place, : len(ids)] = ids
        batch["labels"][place, : len(ids)] = labels
        batch["attention_mask"][place, : len(ids)] = 1
    return batch
