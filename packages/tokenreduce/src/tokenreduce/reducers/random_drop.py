"""Keeping random tokens: a rival that is hard to beat for how little it does."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, Self

import torch

from tokenreduce.reducers.counted import check_amount, check_counts, counts_for
from tokenreduce.reducers.drawing import generator_of
from tokenreduce.reducers.views import check_call, check_count, selection, whole
from tokenreduce.reducing import ReducedGrid, VisualGrid


@dataclass(frozen=True, kw_only=True, slots=True)
class RandomDrop:
    """Keeps a random subset of each view's tokens, every subset of that size equally likely, in raster order.

    Draws depend on (seed, step, stream, index of the view in the call) alone, as in `RandomPooling`.

    Attributes:
        num_tokens: Tokens to keep of each view; views with no more stay whole. None: `share` says it.
        share: Share of each view's tokens to keep, up to 1.
        seed: Of all draws.
        step: See `Drawing.keyed`.
        stream: See `Drawing.keyed`.

    Raises:
        PolicyError: A field is out of range, or both num_tokens and share are given.
    """

    needs_attention: ClassVar[bool] = False
    pixel_factor: ClassVar[int] = 1
    num_tokens: int | None = None
    share: float = 1.0
    seed: int = 0
    step: int = 0
    stream: int = 0

    def __post_init__(self) -> None:
        check_amount(self.num_tokens, self.share)
        for name in ("seed", "step", "stream"):
            check_count(name, getattr(self, name), least=0)

    def keyed(self, *, step: int, stream: int = 0) -> Self:
        """See `Drawing.keyed`."""
        return replace(self, step=step, stream=stream)

    def reduce(
        self, grids: Sequence[VisualGrid], *, rows: Sequence[int], max_tokens: int | None = None
    ) -> list[ReducedGrid]:
        """See `Reducer.reduce`; has no budget."""
        check_call(self, grids, max_tokens)
        return self.reduce_to(grids, counts_for(grids, self.num_tokens, self.share))

    def reduce_to(self, grids: Sequence[VisualGrid], counts: Sequence[int]) -> list[ReducedGrid]:
        """See `CountedReducer.reduce_to`."""
        check_counts(self, grids, counts)
        return [self._reduce(view, grid, count) for view, (grid, count) in enumerate(zip(grids, counts, strict=True))]

    def _reduce(self, view: int, grid: VisualGrid, count: int) -> ReducedGrid:
        everything = whole(grid)
        num_positions = len(everything.tokens)
        if count >= num_positions:
            return everything
        generator = generator_of(self.seed, self.step, self.stream, view)
        kept = torch.randperm(num_positions, generator=generator)[:count].to(everything.tokens.device)
        return selection(everything.tokens[kept], everything.places[kept])
