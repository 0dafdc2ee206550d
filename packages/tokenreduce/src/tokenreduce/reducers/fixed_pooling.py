"""Pooling every view by the same factor: the paper's models at a fixed number of tokens."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from tokenreduce.reducers.views import check_call, check_count, pooled
from tokenreduce.reducing import ReducedGrid, VisualGrid


@dataclass(frozen=True, kw_only=True, slots=True)
class FixedPooling:
    """Averages every view over factor x factor windows (LLaVA-Zip, equation 4); a view's own wanted factor wins.

    Attributes:
        factor: Side of a window; at least 1.

    Raises:
        PolicyError: The factor is out of range.
    """

    needs_attention: ClassVar[bool] = False
    pixel_factor: ClassVar[int] = 1
    factor: int

    def __post_init__(self) -> None:
        check_count("factor", self.factor)

    def reduce(
        self, grids: Sequence[VisualGrid], *, rows: Sequence[int], max_tokens: int | None = None
    ) -> list[ReducedGrid]:
        """See `Reducer.reduce`; has no budget."""
        check_call(self, grids, max_tokens, takes_factors=True)
        return pooled(grids, [grid.factor or self.factor for grid in grids])
