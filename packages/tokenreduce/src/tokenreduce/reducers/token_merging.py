"""The most similar tokens merged until few enough are left.

Source: bipartite soft matching of ToMe (Bolya et al., 2023), section 3.
Shape suffixes: P positions of a view, N tokens left so far, D channels.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F

from tokenreduce.errors import PolicyError
from tokenreduce.reducers.counted import check_amount, check_counts, counts_for
from tokenreduce.reducers.merging import part_means
from tokenreduce.reducers.views import check_call, selection, whole
from tokenreduce.reducing import ReducedGrid, VisualGrid


@dataclass(frozen=True, kw_only=True, slots=True)
class TokenMerging:
    """Merges each view's tokens by rounds of bipartite soft matching, after the tower.

    In a round every second token, from the first, finds the one most like it (cosine) among the others, and the
    most similar pairs are merged. A token is the mean of all positions it stands for: the mean of two
    tokens weighted by their sizes, as in ToMe, which merges a few tokens in every layer of the tower instead, by
    keys; here it is features, and all rounds come one after another.

    Attributes:
        num_tokens: Tokens to leave of each view; views with no more stay whole. None: `share` says it.
        share: Share of each view's tokens to leave, up to 1.
        share_per_round: Share of the tokens that a round merges at most, above 0 and up to a half; a round
            merges at least one. At a half no token has a choice of partner.

    Raises:
        PolicyError: A field is out of range, or both num_tokens and share are given.
    """

    needs_attention: ClassVar[bool] = False
    pixel_factor: ClassVar[int] = 1
    num_tokens: int | None = None
    share: float = 1.0
    share_per_round: float = 0.25

    def __post_init__(self) -> None:
        check_amount(self.num_tokens, self.share)
        if not (math.isfinite(self.share_per_round) and 0 < self.share_per_round <= 0.5):
            raise PolicyError(f"share_per_round: expected a number above 0 and up to 0.5, got {self.share_per_round!r}")

    def reduce(
        self, grids: Sequence[VisualGrid], *, rows: Sequence[int], max_tokens: int | None = None
    ) -> list[ReducedGrid]:
        """See `Reducer.reduce`; has no budget."""
        check_call(self, grids, max_tokens)
        return self.reduce_to(grids, counts_for(grids, self.num_tokens, self.share))

    def reduce_to(self, grids: Sequence[VisualGrid], counts: Sequence[int]) -> list[ReducedGrid]:
        """See `CountedReducer.reduce_to`."""
        check_counts(self, grids, counts)
        return [self._reduce(grid, count) for grid, count in zip(grids, counts, strict=True)]

    def _reduce(self, grid: VisualGrid, count: int) -> ReducedGrid:
        everything = whole(grid)
        if count >= len(everything.tokens):
            return everything
        part = self._parts(everything.tokens.detach(), count)
        tokens = part_means(everything.tokens, part, count).to(everything.tokens.dtype)
        return selection(tokens, part_means(everything.places, part, count))

    @torch.no_grad()
    def _parts(self, features_PD: torch.Tensor, count: int) -> torch.Tensor:  # noqa: N803
        """Which token each position becomes part of; int64 [P]."""
        num_left = len(features_PD)
        part_P = torch.arange(num_left, device=features_PD.device)  # noqa: N806
        while num_left > count:
            num_merged = min(num_left - count, max(1, int(num_left * self.share_per_round)))
            joins_N = _matches(part_means(features_PD, part_P, num_left), num_merged)  # noqa: N806
            stays_N = joins_N == torch.arange(num_left, device=joins_N.device)  # noqa: N806
            part_P = (stays_N.cumsum(0) - 1)[joins_N][part_P]  # noqa: N806
            num_left -= num_merged
        return part_P


def _matches(tokens_ND: torch.Tensor, num_merged: int) -> torch.Tensor:  # noqa: N803
    """Which token each one joins, itself where it stays; num_merged do not; int64 [N]."""
    unit_ND = F.normalize(tokens_ND, dim=1)  # noqa: N806
    likeness, nearest = (unit_ND[0::2] @ unit_ND[1::2].T).max(dim=1)
    joining = likeness.argsort(descending=True, stable=True)[:num_merged]
    joins_N = torch.arange(len(tokens_ND), device=tokens_ND.device)  # noqa: N806
    joins_N[2 * joining] = 2 * nearest[joining] + 1
    return joins_N
