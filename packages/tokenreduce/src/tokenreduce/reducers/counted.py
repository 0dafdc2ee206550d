"""Reducers that keep a number of tokens: where the number comes from, and which tokens it buys, are two things."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Protocol, Self

import torch

from tokenreduce.errors import PolicyError
from tokenreduce.reducers.drawing import keyed
from tokenreduce.reducers.views import check_call, check_count
from tokenreduce.reducing import ReducedGrid, Reducer, VisualGrid


class CountedReducer(Reducer, Protocol):
    """A reducer that can be told how many tokens to keep of each view."""

    def reduce_to(self, grids: Sequence[VisualGrid], counts: Sequence[int]) -> list[ReducedGrid]:
        """Keeps counts[i] tokens of view i, all of them where it has no more.

        Raises:
            FeatureError: Features are not finite, or have an empty side.
            PolicyError: A wanted factor was given, a count is below 1, or there is not one for each view.
        """
        ...


@dataclass(frozen=True, kw_only=True, slots=True)
class CountsOf:
    """`rival` decides which tokens are kept of each view, `decider` how many.

    With DFMR as the decider, what is gained by adapting the number to the image and what is gained by pooling
    can be told apart: the mean number of tokens is DFMR's own. Limits and wanted factors go to the decider.

    What the language model sees is equal: where a grid's rows end in tokens of the model's own (AnyRes), the rival
    gets those as well, all but the one newline that a selection keeps.

    Attributes:
        decider: Its tokens are counted and thrown away.
        rival: Its own number of tokens is not used.

    Raises:
        PolicyError: The decider wants images of another size than the rival, or the rival cannot be told a count.
    """

    decider: Reducer
    rival: CountedReducer

    def __post_init__(self) -> None:
        if not hasattr(self.rival, "reduce_to"):
            raise PolicyError(f"rival: expected a reducer that keeps a count of tokens, got {self.rival!r}")
        if self.decider.pixel_factor != self.rival.pixel_factor:
            raise PolicyError(
                f"decider: expected pixel_factor {self.rival.pixel_factor} as the rival's, "
                f"got {self.decider.pixel_factor}"
            )

    @property
    def needs_attention(self) -> bool:
        """Whether either of the two does."""
        return self.decider.needs_attention or self.rival.needs_attention

    @property
    def pixel_factor(self) -> int:
        """Of both."""
        return self.rival.pixel_factor

    def keyed(self, *, step: int, stream: int = 0) -> Self:
        """See `Drawing.keyed`."""
        return replace(
            self,
            decider=keyed(self.decider, step=step, stream=stream),
            rival=keyed(self.rival, step=step, stream=stream),
        )

    def reduce(
        self, grids: Sequence[VisualGrid], *, rows: Sequence[int], max_tokens: int | None = None
    ) -> list[ReducedGrid]:
        """See `Reducer.reduce`; takes what the decider takes."""
        with torch.no_grad():
            decided = self.decider.reduce(grids, rows=rows, max_tokens=max_tokens)
        counts = [_visible_tokens(grid, left) for grid, left in zip(grids, decided, strict=True)]
        return self.rival.reduce_to([replace(grid, factor=None) for grid in grids], counts)


def check_counts(reducer: Reducer, grids: Sequence[VisualGrid], counts: Sequence[int]) -> None:
    """What every `reduce_to` refuses; errors as there."""
    check_call(reducer, grids)
    if len(counts) != len(grids):
        raise PolicyError(f"counts: expected {len(grids)}, one for each view, got {len(counts)}")
    for view, count in enumerate(counts):
        check_count(f"count of view {view}", count)


def check_amount(num_tokens: int | None, share: float) -> None:
    """Raises PolicyError unless one of a number and a share says how much to keep."""
    if num_tokens is not None:
        check_count("num_tokens", num_tokens)
        if share != 1.0:
            raise PolicyError(f"share: expected none beside num_tokens {num_tokens}, got {share!r}")
    if not (math.isfinite(share) and 0 < share <= 1):
        raise PolicyError(f"share: expected a number above 0 and up to 1, got {share!r}")


def counts_for(grids: Sequence[VisualGrid], num_tokens: int | None, share: float) -> list[int]:
    """How many tokens to keep of each view: the number, or the share of its positions to the nearest, but one."""
    if num_tokens is not None:
        return [num_tokens] * len(grids)
    return [max(1, math.floor(share * grid.features.shape[0] * grid.features.shape[1] + 0.5)) for grid in grids]


def _visible_tokens(grid: VisualGrid, left: ReducedGrid) -> int:
    if left.shape is None:
        return len(left.tokens)
    return len(left.tokens) + (left.shape[0] - 1) * grid.num_row_tokens
