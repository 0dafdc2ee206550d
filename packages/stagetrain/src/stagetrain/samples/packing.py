"""Builds the tensors of a batch from conversations.

Shape legend: B rows, T tokens of the longest row, A axes of positions (1 or 3).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from stagetrain.samples.placeholders import EncodedImage
from stagetrain.samples.rendering import IGNORED

PREFIX, PADDING = 0, -1


@dataclass(frozen=True, slots=True)
class Conversation:
    """A conversation with its images in place.

    Attributes:
        tokens: Token ids, all placeholders of the images among them.
        labels: One label for each token.
        positions: [A, T] int64.
        images: In order.
        border: Token behind the last image; 0 without images.
    """

    tokens: tuple[int, ...]
    labels: tuple[int, ...]
    positions: torch.Tensor
    images: tuple[EncodedImage, ...]
    border: int


@dataclass(frozen=True, slots=True)
class Row:
    """One row of a batch: conversations that share their first `num_shared` tokens, each blind to the others."""

    conversations: tuple[Conversation, ...]
    num_shared: int = 0

    def __len__(self) -> int:
        return self.num_shared + sum(len(one.tokens) - self.num_shared for one in self.conversations)

    @property
    def images(self) -> tuple[EncodedImage, ...]:
        """Of all its conversations: they share them."""
        return self.conversations[0].images


def build_rows(rows: Sequence[Row], pad_token_id: int) -> dict[str, torch.Tensor]:
    """Right-padded batch of rows.

    Returns:
        input_ids and labels [B, T], position_ids [B, T] or [3, B, T], int64; attention_mask int64 [B, T], or
        where a row has several conversations bool [B, 1, T, T] (True: may attend; a padded position attends to
        itself alone).
    """
    length = max(map(len, rows))
    num_axes = len(rows[0].conversations[0].positions)
    ids = torch.full((len(rows), length), pad_token_id)
    labels, segments = torch.full_like(ids, IGNORED), torch.full_like(ids, PADDING)
    positions = torch.zeros(num_axes, len(rows), length, dtype=torch.int64)
    for number, row in enumerate(rows):
        start, skipped = 0, 0
        for segment, one in enumerate(row.conversations, 1):
            end = start + len(one.tokens) - skipped
            ids[number, start:end] = torch.tensor(one.tokens[skipped:])
            labels[number, start:end] = torch.tensor(one.labels[skipped:])
            positions[:, number, start:end] = one.positions[:, skipped:]
            segments[number, start:end] = segment
            start, skipped = end, row.num_shared
        segments[number, : row.num_shared] = PREFIX
    packed = any(len(row.conversations) > 1 for row in rows)
    return {
        "input_ids": ids,
        "position_ids": positions if num_axes > 1 else positions[0],
        "labels": labels,
        "attention_mask": segment_mask(segments) if packed else (segments != PADDING).long(),
    }


def segment_mask(segments: torch.Tensor) -> torch.Tensor:
    """Who may attend to whom, bool [B, 1, T, T], from segment numbers (0 prefix, -1 padding) [B, T]."""
    length = segments.shape[1]
    query, key = segments[:, :, None], segments[:, None, :]
    visible = ((key == query) | (key == PREFIX)) & (query != PADDING)
    causal = torch.ones(length, length, dtype=torch.bool).tril()
    return ((visible & causal) | torch.eye(length, dtype=torch.bool))[:, None]
