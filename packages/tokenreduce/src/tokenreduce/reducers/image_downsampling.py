"""Smaller images instead of fewer features: the cheapest rival, for the tower's work shrinks as well."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from tokenreduce.reducers.views import check_call, check_count, whole
from tokenreduce.reducing import ReducedGrid, VisualGrid


@dataclass(frozen=True, kw_only=True, slots=True)
class ImageDownsampling:
    """Has the sides of every image divided by `factor` before the tower, and keeps all tokens of the small image.

    Places are those on the small image's own grid.

    Attributes:
        factor: What to divide by; at least 1.

    Raises:
        PolicyError: The factor is out of range.
    """

    needs_attention: ClassVar[bool] = False
    factor: int

    def __post_init__(self) -> None:
        check_count("factor", self.factor)

    @property
    def pixel_factor(self) -> int:
        """The factor."""
        return self.factor

    def reduce(
        self, grids: Sequence[VisualGrid], *, rows: Sequence[int], max_tokens: int | None = None
    ) -> list[ReducedGrid]:
        """See `Reducer.reduce`; the views are those of the small images already."""
        check_call(self, grids, max_tokens)
        return [whole(grid) for grid in grids]
