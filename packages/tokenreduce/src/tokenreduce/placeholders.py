"""Which columns of a batch its images' placeholders are, and which of them stay.

Shape suffixes: B rows, T columns before, N columns after pruning.
"""

from collections.abc import Sequence

import torch

from tokenreduce.errors import PlaceholderError

PAD = -1


def image_rows(placeholder_BT: torch.Tensor, num_full: Sequence[int]) -> list[int]:  # noqa: N803
    """The row of each image, given how many placeholders each has; images follow one another through the batch.

    Raises:
        PlaceholderError: A row's placeholders are not whole images, or all of them are not these images.
    """
    counts = placeholder_BT.sum(dim=1).tolist()
    rows: list[int] = []
    for row, count in enumerate(counts):
        missing = count
        while missing > 0 and len(rows) < len(num_full):
            missing -= num_full[len(rows)]
            rows.append(row)
        if missing:
            images = [image for image, where in enumerate(rows) if where == row]
            expected = f"{sum(num_full[image] for image in images)} for images {images}" if images else "none"
            raise _mismatch(num_full, counts, f"row {row}: expected {expected}, got {count}")
    if len(rows) < len(num_full):
        raise _mismatch(num_full, counts, f"none is left for image {len(rows)}")
    return rows


def kept_columns(
    placeholder_BT: torch.Tensor,  # noqa: N803
    num_full: Sequence[int],
    num_kept: Sequence[int],
    pad_left: bool = False,
    visible_BT: torch.Tensor | None = None,  # noqa: N803
) -> torch.Tensor:
    """Columns that stay, in order: all text, and the first num_kept[i] of image i's num_full[i] placeholders.

    Args:
        placeholder_BT: Where the prompt has placeholders.
        num_full: Placeholders of each image.
        num_kept: How many of them stay.
        pad_left: Where shorter rows are filled.
        visible_BT: False where the batch is padded already; that padding goes.

    Returns:
        [B, N] int64 source columns; PAD fills rows shorter than the longest, on the right or on the left.
    """
    # One image too many, so that text before or without any image has something to look up.
    full, kept = (torch.tensor([*numbers, 0], device=placeholder_BT.device) for numbers in (num_full, num_kept))
    ends = full.cumsum(0)
    rank_BT = (placeholder_BT.flatten().cumsum(0) - 1).clamp_min(0).view_as(placeholder_BT)  # noqa: N806
    image_BT = torch.searchsorted(ends, rank_BT, right=True).clamp_max(len(num_full))  # noqa: N806
    text_BT = ~placeholder_BT if visible_BT is None else ~placeholder_BT & visible_BT  # noqa: N806
    keep_BT = text_BT | (placeholder_BT & (rank_BT - (ends - full)[image_BT] < kept[image_BT]))  # noqa: N806
    length_B1 = keep_BT.sum(dim=1, keepdim=True)  # noqa: N806
    num_columns = int(length_B1.max())
    # Stable: kept columns come first, in order.
    order_BN = keep_BT.logical_not().int().argsort(dim=1, stable=True)[:, :num_columns]  # noqa: N806
    slot_1N = torch.arange(num_columns, device=rank_BT.device)[None]  # noqa: N806
    if not pad_left:
        return torch.where(slot_1N < length_B1, order_BN, PAD)
    shifted_BN = slot_1N - (num_columns - length_B1)  # noqa: N806
    return torch.where(shifted_BN >= 0, order_BN.gather(1, shifted_BN.clamp_min(0)), PAD)


def placed_columns(
    placeholder_BT: torch.Tensor,  # noqa: N803
    columns_BN: torch.Tensor,  # noqa: N803
    num_full: Sequence[int],
    num_kept: Sequence[int],
    places: torch.Tensor,
) -> torch.Tensor:
    """`columns_BN` with each visual column replaced by that of the placeholder it stands for; [B, N] int64.

    Args:
        placeholder_BT: Where the whole prompt has placeholders.
        columns_BN: What `kept_columns` returned.
        num_full: Placeholders of each image.
        num_kept: Kept placeholders of each image.
        places: Index of a placeholder within its image for each kept one, over all images.
    """
    device = columns_BN.device
    full, kept = (torch.tensor(numbers, device=device, dtype=torch.long) for numbers in (num_full, num_kept))
    first = (full.cumsum(0) - full).repeat_interleave(kept)
    all_columns = placeholder_BT.nonzero()[:, 1]
    visual_BN = placeholder_BT.gather(1, columns_BN.clamp_min(0)) & (columns_BN != PAD)  # noqa: N806
    return columns_BN.masked_scatter(visual_BN, all_columns[first + places.to(device)])


def _mismatch(num_full: Sequence[int], counts: Sequence[int], where: str) -> PlaceholderError:
    each = f"{num_full[0]} placeholders" if len(set(num_full)) == 1 else f"{list(num_full)} placeholders"
    return PlaceholderError(
        f"input_ids: expected {each} for each of {len(num_full)} images, each image in one row; "
        f"got rows of {list(counts)} ({where})"
    )
