"""Builds the tensors of a batch from rendered conversations.

Shape legend: B rows, T tokens of the longest row.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from stagetrain.rendering import IGNORED, Rendered

PREFIX, PADDING = 0, -1


@dataclass(frozen=True, slots=True)
class Row:
    """One row of a batch: a prefix that several segments share, and the segments.

    Attributes:
        prefix: Tokens through the last image placeholder.
        segments: Conversations about that image, each blind to the others.
    """

    prefix: tuple[int, ...]
    segments: tuple[Rendered, ...]

    def __len__(self) -> int:
        return len(self.prefix) + sum(len(segment.tokens) for segment in self.segments)


def build_rows(rows: Sequence[Row], pad_token_id: int, packed: bool) -> dict[str, torch.Tensor]:
    """Right-padded batch of rows.

    Args:
        rows: At least one; several segments in a row only when packed.
        pad_token_id: Token of the padding.
        packed: Whether the mask tells segments apart.

    Returns:
        input_ids, position_ids and labels [B, T], int64; attention_mask bool [B, 1, T, T] when
        packed (True: may attend; a padded position attends to itself alone), else int64 [B, T].
    """
    length = max(map(len, rows))
    columns = [_columns(row, length, pad_token_id) for row in rows]
    ids, positions, labels, segments = (torch.tensor(column) for column in zip(*columns, strict=True))
    mask = segment_mask(segments) if packed else (segments != PADDING).long()
    return {"input_ids": ids, "position_ids": positions, "labels": labels, "attention_mask": mask}


def segment_mask(segments: torch.Tensor) -> torch.Tensor:
    """Who may attend to whom, bool [B, 1, T, T], from segment numbers (0 prefix, -1 padding) [B, T]."""
    length = segments.shape[1]
    query, key = segments[:, :, None], segments[:, None, :]
    visible = ((key == query) | (key == PREFIX)) & (query != PADDING)
    causal = torch.ones(length, length, dtype=torch.bool).tril()
    return ((visible & causal) | torch.eye(length, dtype=torch.bool))[:, None]


def _columns(row: Row, length: int, pad_token_id: int) -> tuple[list[int], list[int], list[int], list[int]]:
    start = len(row.prefix)
    ids, positions = list(row.prefix), list(range(start))
    labels, segments = [IGNORED] * start, [PREFIX] * start
    for number, segment in enumerate(row.segments, 1):
        ids += segment.tokens
        labels += segment.labels
        positions += range(start, start + len(segment.tokens))
        segments += [number] * len(segment.tokens)
    padding = length - len(ids)
    return (
        ids + [pad_token_id] * padding,
        positions + [0] * padding,
        labels + [IGNORED] * padding,
        segments + [PADDING] * padding,
    )
