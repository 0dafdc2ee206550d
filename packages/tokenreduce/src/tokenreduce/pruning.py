"""Surplus image placeholders taken out of a batch.

Shape suffixes: B rows, T columns before, N columns after pruning.
"""

from dataclasses import dataclass

import torch

from tokenreduce.errors import PlaceholderError
from tokenreduce.placeholders import PAD

IGNORED_LABEL = -100


@dataclass(frozen=True, kw_only=True, slots=True)
class Batch:
    """The tensors of a batch that have one entry a token; None where the caller gave none.

    Attributes:
        input_ids: [B, T] int64.
        attention_mask: [B, T] integer or bool, or bool [B or 1, 1, T, T], True where a query may attend.
        position_ids: [B or 1, T] int64; or of three coordinates [3 or 4, B, T], the fourth, in front, the text's.
        labels: [B, T] int64, -100 ignored.
        mm_token_type_ids: [B, T] int, 0 for text.
    """

    input_ids: torch.Tensor
    attention_mask: torch.Tensor | None = None
    position_ids: torch.Tensor | None = None
    labels: torch.Tensor | None = None
    mm_token_type_ids: torch.Tensor | None = None


def check_batch(batch: Batch, *, coordinates: bool) -> None:
    """Checks the shapes of a batch; `coordinates` says whether positions may have three.

    Raises:
        PlaceholderError: A tensor's shape does not match input_ids, or a 4-D mask is not bool.
    """
    rows, tokens = batch.input_ids.shape
    positions: list[tuple[int, ...]] = [(rows, tokens), (1, tokens)]
    if coordinates:
        positions += [(3, rows, tokens), (4, rows, tokens)]
    allowed: dict[str, list[tuple[int, ...]]] = {
        "attention_mask": [(rows, tokens), (rows, 1, tokens, tokens), (1, 1, tokens, tokens)],
        "position_ids": positions,
        "labels": [(rows, tokens)],
        "mm_token_type_ids": [(rows, tokens)],
    }
    for name, shapes in allowed.items():
        tensor = getattr(batch, name)
        if tensor is not None and tuple(tensor.shape) not in shapes:
            expected = " or ".join(str(list(shape)) for shape in shapes)
            raise PlaceholderError(f"{name}: expected shape {expected} beside images, got {list(tensor.shape)}")
    mask = batch.attention_mask
    if mask is not None and mask.ndim == 4 and mask.dtype != torch.bool:
        raise PlaceholderError(f"attention_mask: expected bool for a 4-D mask, got {mask.dtype}")


def prune(
    batch: Batch,
    columns_BN: torch.Tensor,  # noqa: N803
    pad_token_id: int,
    places_BN: torch.Tensor | None = None,  # noqa: N803
) -> Batch:
    """The batch with only `columns_BN` (see `kept_columns`) of its tensors.

    Padding gets the pad token, mask 0 (in a 4-D mask it attends only to itself), label -100 and type 0. A mask is
    made up only where padding on the left needs one: what is on the right nothing attends to. Positions that were
    not given stay so; positions of three coordinates are taken from `places_BN` (see `placed_columns`).
    """
    mask, positions = batch.attention_mask, batch.position_ids
    if mask is None and bool((columns_BN[:, 0] == PAD).any()):
        mask = torch.ones_like(batch.input_ids)
    if positions is not None and positions.ndim == 3 and places_BN is not None:
        text = [_shrunk(positions[0], batch, columns_BN)] if len(positions) == 4 else []
        positions = torch.stack(text + [take(each, places_BN, 0) for each in positions[-3:]])
    elif positions is not None:
        positions = _shrunk(positions, batch, columns_BN)
    labels, types = batch.labels, batch.mm_token_type_ids
    return Batch(
        input_ids=take(batch.input_ids, columns_BN, pad_token_id),
        attention_mask=None if mask is None else _take_mask(mask, columns_BN),
        position_ids=positions,
        labels=None if labels is None else take(labels, columns_BN, IGNORED_LABEL),
        mm_token_type_ids=None if types is None else take(types, columns_BN, 0),
    )


def needed_mask(mask: torch.Tensor | None, positions: torch.Tensor | None) -> torch.Tensor | None:
    """The mask, or None for a 2-D one that hides nothing: attention kernels are faster without.

    Without a mask transformers reads several documents off positions [B, T] that do not count on; then it stays.
    """
    if mask is None or mask.ndim != 2 or not bool(mask.all()):
        return mask
    counting = positions is None or positions.ndim == 3 or bool((positions.diff(dim=1) == 1).all())
    return None if counting else mask


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


def _shrunk(positions: torch.Tensor, batch: Batch, columns_BN: torch.Tensor) -> torch.Tensor:  # noqa: N803
    """Positions [B or 1, T] less the dropped placeholders that a token sees before it; [B, N].

    Padding on the left has position 0. On the right it counts on: a jump would look like another document.
    """
    positions = positions.expand_as(batch.input_ids)
    left = take(positions - _dropped_before(batch, positions, columns_BN), columns_BN, 0)
    slot = torch.arange(columns_BN.shape[1], device=columns_BN.device)[None]
    last = torch.where(columns_BN != PAD, slot, 0).amax(dim=1, keepdim=True)
    return torch.where(slot > last, left.gather(1, last) + slot - last, left)


def _dropped_before(batch: Batch, positions: torch.Tensor, columns_BN: torch.Tensor) -> torch.Tensor:  # noqa: N803
    """How many dropped placeholders each token sees before it; [B, T] int64.

    In a packed row with a 4-D mask a segment sees the shared prefix, not the other segments. Without one,
    a row may hold several documents, each starting again at position 0 and seeing nothing of the others.
    """
    num_rows, num_tokens = batch.input_ids.shape
    dropped = torch.ones(num_rows, num_tokens + 1, dtype=torch.long, device=columns_BN.device)
    # PAD points one past the end, at a column that is cut off again.
    dropped.scatter_(1, columns_BN.where(columns_BN != PAD, num_tokens), 0)
    dropped = dropped[:, :num_tokens]
    mask = batch.attention_mask
    if mask is not None and mask.ndim == 4:
        return (mask[:, 0].tril(-1) & dropped.bool()[:, None]).sum(dim=-1)
    if mask is not None:
        # The caller's padding has gone as well, and never counted.
        dropped = dropped * mask.bool()
    before = dropped.cumsum(dim=1) - dropped
    restart = torch.zeros_like(dropped, dtype=torch.bool)
    restart[:, 1:] = (positions[:, 1:] == 0) & (positions[:, :-1] > 0)
    return before - before.where(restart, 0).cummax(dim=1).values
