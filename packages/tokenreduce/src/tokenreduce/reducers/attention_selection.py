"""Tokens that the tower attends to are kept, the others merged into a few.

Source: the idea of VisionZip (Yang et al., 2024).
Shape suffixes: P positions of a view, N tokens left, C contextual targets, D channels.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F

from tokenreduce.errors import FeatureError
from tokenreduce.reducers.counted import check_counts
from tokenreduce.reducers.merging import part_means
from tokenreduce.reducers.views import check_call, check_count, selection, whole
from tokenreduce.reducing import ReducedGrid, VisualGrid


@dataclass(frozen=True, kw_only=True, slots=True)
class AttentionSelection:
    """Keeps the most attended tokens of each view as they are, and merges all others into contextual ones.

    Of the others, in raster order, evenly spaced ones are the targets; each of the rest joins the target
    most like it, and a contextual token is the plain mean of a target and what joined it. VisionZip
    compares the keys of the tower's attention; a view has none, so the features' own cosine similarity decides.

    Views with no more tokens than the two numbers together stay whole.

    Attributes:
        num_dominant: Tokens to keep of each view; at least 1.
        num_contextual: Tokens to merge the rest into; with 0 the rest is dropped.

    Raises:
        PolicyError: A number is out of range.
    """

    needs_attention: ClassVar[bool] = True
    pixel_factor: ClassVar[int] = 1
    num_dominant: int = 54
    num_contextual: int = 10

    def __post_init__(self) -> None:
        check_count("num_dominant", self.num_dominant)
        check_count("num_contextual", self.num_contextual, least=0)

    def reduce(
        self, grids: Sequence[VisualGrid], *, rows: Sequence[int], max_tokens: int | None = None
    ) -> list[ReducedGrid]:
        """See `Reducer.reduce`; has no budget.

        Raises:
            FeatureError: Also where a view's attention is missing, of another shape or not finite.
        """
        check_call(self, grids, max_tokens)
        return self.reduce_to(grids, [self.num_dominant + self.num_contextual] * len(grids))

    def reduce_to(self, grids: Sequence[VisualGrid], counts: Sequence[int]) -> list[ReducedGrid]:
        """See `CountedReducer.reduce_to`; the two kinds share each count as they share the two numbers' sum.

        Contextual tokens are rounded down, and there is always a dominant one.
        """
        check_counts(self, grids, counts)
        for view, grid in enumerate(grids):
            _check_attention(grid, view)
        return [self._reduce(grid, count) for grid, count in zip(grids, counts, strict=True)]

    def _reduce(self, grid: VisualGrid, count: int) -> ReducedGrid:
        everything = whole(grid)
        if count >= len(everything.tokens):
            return everything
        assert grid.attention is not None  # reduce_to has checked it.
        num_contextual = count * self.num_contextual // (self.num_dominant + self.num_contextual)
        # Stable: equally attended tokens are taken in raster order.
        ranking = grid.attention.detach().flatten().argsort(descending=True, stable=True)
        dominant, rest = ranking[: count - num_contextual], ranking[count - num_contextual :].sort().values
        # Which of the kept tokens each position becomes part of; -1: none.
        part = torch.full_like(ranking, -1)
        part[dominant] = torch.arange(len(dominant), device=part.device)
        if num_contextual:
            part[rest] = len(dominant) + _nearest_target(everything.tokens[rest].detach(), num_contextual)
        tokens = part_means(everything.tokens, part, count).to(everything.tokens.dtype)
        return selection(tokens, part_means(everything.places, part, count))


def _nearest_target(tokens_PD: torch.Tensor, num_targets: int) -> torch.Tensor:  # noqa: N803
    """Index of the evenly spaced target each token is most like, a target's own for itself; int64 [P]."""
    targets = torch.arange(num_targets, device=tokens_PD.device) * len(tokens_PD) // num_targets
    unit_PD = F.normalize(tokens_PD.float(), dim=1)  # noqa: N806
    nearest = (unit_PD @ unit_PD[targets].T).argmax(dim=1)
    nearest[targets] = torch.arange(num_targets, device=nearest.device)
    return nearest


def _check_attention(grid: VisualGrid, view: int) -> None:
    expected = grid.features.shape[:2]
    attention = grid.attention
    if attention is None or attention.shape != expected:
        got = None if attention is None else list(attention.shape)
        raise FeatureError(f"attention of view {view}: expected shape {list(expected)}, got {got}")
    if not bool(torch.isfinite(attention).all()):
        raise FeatureError(f"attention of view {view}: expected finite values, got NaN or infinity")
