"""Surplus image placeholders taken out of a batch.

Shape suffixes: B rows, T columns before, N columns after pruning.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from tokenreduce.errors import PlaceholderError

IGNORED_LABEL = -100
PAD = -1


@dataclass(frozen=True, kw_only=True, slots=True)
class Batch:
    """The tensors of a batch that have one entry a token; None where the caller gave none.

    Attributes:
        input_ids: [B, T] int64.
        attention_mask: [B, T] integer or bool, or bool [B or 1, 1, T, T], True where a query may attend.
        position_ids: [B or 1, T] int64.
        labels: [B, T] int64, -100 ignored.
    """

    input_ids: torch.Tensor
    attention_mask: torch.Tensor | None = None
    position_ids: torch.Tensor | None = None
    labels: torch.Tensor | None = None


def kept_columns(
    placeholder_BT: torch.Tensor,  # noqa: N803
    num_full: int,
    num_kept: Sequence[int],
    pad_left: bool = False,
) -> torch.Tensor:
    """Columns that stay, in order: all text, and the first num_kept[i] of image i's num_full placeholders.

    Returns:
        [B, N] int64 source columns; PAD fills rows shorter than the longest, on the right or on the left.

    Raises:
        PlaceholderError: A row's placeholders are not whole images, or all of them are not len(num_kept) images.
    """
    counts = placeholder_BT.sum(dim=1)
    if bool((counts % num_full != 0).any()) or int(counts.sum()) != num_full * len(num_kept):
        raise PlaceholderError(
            f"input_ids: expected {num_full} placeholders for each of {len(num_kept)} images, each image in one row; "
            f"got rows of {counts.tolist()}"
        )
    rank_BT = (placeholder_BT.flatten().cumsum(0) - 1).clamp_min(0).view_as(placeholder_BT)  # noqa: N806
    # One entry too many, so that text before or without any image has something to look up.
    limit_BT = torch.tensor([*num_kept, 0], device=rank_BT.device)[rank_BT // num_full]  # noqa: N806
    keep_BT = ~placeholder_BT | (rank_BT % num_full < limit_BT)  # noqa: N806
    length_B1 = keep_BT.sum(dim=1, keepdim=True)  # noqa: N806
    num_columns = int(length_B1.max())
    # Stable: kept columns come first, in order.
    order_BN = keep_BT.logical_not().int().argsort(dim=1, stable=True)[:, :num_columns]  # noqa: N806
    slot_1N = torch.arange(num_columns, device=rank_BT.device)[None]  # noqa: N806
    if not pad_left:
        return torch.where(slot_1N < length_B1, order_BN, PAD)
    shifted_BN = slot_1N - (num_columns - length_B1)  # noqa: N806
    return torch.where(shifted_BN >= 0, order_BN.gather(1, shifted_BN.clamp_min(0)), PAD)


def prune(batch: Batch, columns_BN: torch.Tensor, pad_token_id: int) -> Batch:  # noqa: N803
    """The batch with only `columns_BN` (see `kept_columns`) of its tensors.

    Padding gets the pad token, mask 0 (in a 4-D mask it attends only to itself), position 0 and label -100.
    A mask is made up only where padding needs one; positions that were not given stay so.

    Raises:
        PlaceholderError: A tensor's shape does not match input_ids, or a 4-D mask is not bool.
    """
    _check(batch)
    padded = bool((columns_BN == PAD).any())
    mask, positions, labels = batch.attention_mask, batch.position_ids, batch.labels
    if mask is None and padded:
        mask = torch.ones_like(batch.input_ids)
    if positions is not None:
        positions = take(positions.expand_as(batch.input_ids) - _dropped_before(batch, columns_BN), columns_BN, 0)
    return Batch(
        input_ids=take(batch.input_ids, columns_BN, pad_token_id),
        attention_mask=None if mask is None else _take_mask(mask, columns_BN),
        position_ids=positions,
        labels=None if labels is None else take(labels, columns_BN, IGNORED_LABEL),
    )


def take(x_BT: torch.Tensor, columns_BN: torch.Tensor, fill: int) -> torch.Tensor:  # noqa: N803
    """Columns of each row, `fill` where the column is PAD; [B, T] -> [B, N]."""
    return x_BT.gather(1, columns_BN.clamp_min(0)).masked_fill(columns_BN == PAD, fill)


def _take_mask(mask: torch.Tensor, columns_BN: torch.Tensor) -> torch.Tensor:  # noqa: N803
    if mask.ndim == 2:
        return take(mask, columns_BN, 0)
    num_rows, num_columns = columns_BN.shape
    source = columns_BN.clamp_min(0)[:, None]
    mask = mask.expand(num_rows, -1, -1, -1)
    mask = mask.gather(2, source[..., None].expand(-1, -1, -1, mask.shape[3]))
    mask = mask.gather(3, source[:, :, None].expand(-1, -1, num_columns, -1))
    pad = (columns_BN == PAD)[:, None]
    itself = torch.eye(num_columns, dtype=torch.bool, device=mask.device)
    return (mask & ~pad[..., None] & ~pad[:, :, None]) | (itself & pad[..., None])


def _dropped_before(batch: Batch, columns_BN: torch.Tensor) -> torch.Tensor:  # noqa: N803
    """How many dropped placeholders each token sees before it; [B, T] int64.

    In a packed row with a 4-D mask a segment sees the shared prefix, not the other segments. Without one,
    a row may hold several documents, each starting again at position 0 and seeing nothing of the others.
    """
    assert batch.position_ids is not None
    num_rows, num_tokens = batch.input_ids.shape
    dropped = torch.ones(num_rows, num_tokens + 1, dtype=torch.long, device=columns_BN.device)
    # PAD points one past the end, at a column that is cut off again.
    dropped.scatter_(1, columns_BN.where(columns_BN != PAD, num_tokens), 0)
    dropped = dropped[:, :num_tokens]
    mask = batch.attention_mask
    if mask is not None and mask.ndim == 4:
        return (mask[:, 0].tril(-1) & dropped.bool()[:, None]).sum(dim=-1)
    before = dropped.cumsum(dim=1) - dropped
    positions = batch.position_ids.expand_as(dropped)
    restart = torch.zeros_like(dropped, dtype=torch.bool)
    restart[:, 1:] = (positions[:, 1:] == 0) & (positions[:, :-1] > 0)
    return before - before.where(restart, 0).cummax(dim=1).values


def _check(batch: Batch) -> None:
    rows, tokens = batch.input_ids.shape
    allowed: dict[str, list[tuple[int, ...]]] = {
        "attention_mask": [(rows, tokens), (rows, 1, tokens, tokens), (1, 1, tokens, tokens)],
        "position_ids": [(rows, tokens), (1, tokens)],
        "labels": [(rows, tokens)],
    }
    for name, shapes in allowed.items():
        tensor = getattr(batch, name)
        if tensor is not None and tuple(tensor.shape) not in shapes:
            expected = " or ".join(str(list(shape)) for shape in shapes)
            raise PlaceholderError(f"{name}: expected shape {expected} beside images, got {list(tensor.shape)}")
    mask = batch.attention_mask
    if mask is not None and mask.ndim == 4 and mask.dtype != torch.bool:
        raise PlaceholderError(f"attention_mask: expected bool for a 4-D mask, got {mask.dtype}")
