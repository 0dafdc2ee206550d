"""Grids of visual tokens, and where they lie in a batch.

Shape legend: B rows, T tokens, U units, L visual tokens of a unit.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch

from stagetrain.errors import PoolingUnsupportedError


@dataclass(frozen=True, kw_only=True, slots=True)
class View:
    """Placeholders of one unit in the order of the sequence; fixed ones are left as they are.

    Attributes:
        rows: Rows of the grid.
        columns: Columns of the grid.
        num_start: Fixed placeholders before the grid, such as a class token.
        num_row_end: Fixed placeholders at the end of each row.
        num_end: Fixed placeholders behind the grid.
    """

    rows: int
    columns: int
    num_start: int = 0
    num_row_end: int = 0
    num_end: int = 0

    def __len__(self) -> int:
        return self.num_start + self.rows * (self.columns + self.num_row_end) + self.num_end


@dataclass(frozen=True, slots=True)
class UnitGroup:
    """Units of one shape.

    Attributes:
        sides: Rows and columns of their grid.
        rows: Row of the batch that each lies in, [U] int64.
        columns: Place of each token in that row, in raster order and so ascending, [U, L] int64.
    """

    sides: tuple[int, int]
    rows: torch.Tensor
    columns: torch.Tensor


def place_views(visual: torch.Tensor, views: Sequence[View]) -> list[UnitGroup]:
    """Puts views on the placeholders of a batch, both in the order of the sequence.

    Args:
        visual: True at a placeholder, [B, T].
        views: One for each unit.

    Returns:
        Units by shape.

    Raises:
        PoolingUnsupportedError: The views are not those of the placeholders.
    """
    places = visual.flatten().nonzero()[:, 0]
    expected = sum(map(len, views))
    if len(places) != expected:
        raise PoolingUnsupportedError(
            f"pooling: input_ids: expected {expected} placeholders for {len(views)} grids of visual tokens, got"
            f" {len(places)}"
        )
    starts: dict[tuple[int, int, int], list[int]] = {}
    start = 0
    for view in views:
        # A view may be all newlines: a detail view of an image a hundred times as long as wide.
        if view.rows and view.columns:
            starts.setdefault((view.rows, view.columns, view.num_row_end), []).append(start + view.num_start)
        start += len(view)
    groups = [_group(places, *shape, begins, visual.shape[1]) for shape, begins in starts.items()]
    if not all(bool((group.columns[:, -1] >= group.columns[:, 0]).all()) for group in groups):
        raise PoolingUnsupportedError("pooling: input_ids: expected every image in one row, got one that goes over")
    return groups


def unit_numbers(groups: Iterable[UnitGroup], like: torch.Tensor) -> torch.Tensor:
    """Number of the unit that each token belongs to, -1 for none, int64 of the shape [B, T] of `like`."""
    numbers = torch.full(like.shape, -1, dtype=torch.int64, device=like.device)
    first = 0
    for group in groups:
        number = torch.arange(first, first + len(group.rows), device=like.device)
        numbers[group.rows[:, None], group.columns] = number[:, None].expand_as(group.columns)
        first += len(group.rows)
    return numbers


def _group(
    places: torch.Tensor, num_rows: int, num_columns: int, num_row_end: int, begins: list[int], width: int
) -> UnitGroup:
    row = torch.arange(num_rows)[:, None] * (num_columns + num_row_end)
    within = (row + torch.arange(num_columns)).flatten()
    flat = places[(torch.tensor(begins)[:, None] + within).to(places.device)]
    rows = flat[:, 0] // width
    # Of a unit that goes over into the next row the last place would lie before the first.
    columns = flat - rows[:, None] * width
    columns = torch.where(columns < width, columns, -1)
    return UnitGroup((num_rows, num_columns), rows, columns)
