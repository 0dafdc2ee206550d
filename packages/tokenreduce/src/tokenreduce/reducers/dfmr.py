"""DFMR as a reducer: each view's own factor, and a limit of tokens for each row of a batch."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from tokenreduce.budget import allocate
from tokenreduce.errors import BudgetError, PlaceholderError, PolicyError
from tokenreduce.policy import ReductionPolicy
from tokenreduce.reducers.views import pooled
from tokenreduce.reducing import ReducedGrid, VisualGrid
from tokenreduce.sigma import choose_indices, sigmas_of_grids


@dataclass(frozen=True, slots=True)
class DfmrReducer:
    """Pools each view by the factor the policy allows it.

    A view with a wanted factor gets that one. The policy's choice stands in every row that stays within
    `max_tokens`. A row above it is shared out anew (see `tokenreduce.budget.allocate`): the factors of its
    other views are those that fit and throw away the least residual sigma, whatever the policy's mode; tau
    has no say there. So a limit takes tokens away and never gives any to a row.

    Attributes:
        policy: tau, mode, factors and normalization.
    """

    policy: ReductionPolicy
    needs_attention: ClassVar[bool] = False
    pixel_factor: ClassVar[int] = 1

    def reduce(
        self, grids: Sequence[VisualGrid], *, rows: Sequence[int], max_tokens: int | None = None
    ) -> list[ReducedGrid]:
        """See `tokenreduce.reducing.Reducer`.

        Raises:
            BudgetError: A row's limit is below what the largest factors give.
            FeatureError: Features are not finite, not floating, or have an empty side.
            PlaceholderError: There is not one row for each view.
            PolicyError: A wanted factor is not an integer from 1.
        """
        _check(grids, rows)
        policy = self.policy
        sigmas = sigmas_of_grids(grids, policy.factors, policy.mode, policy.normalization)
        chosen = choose_indices(sigmas, policy.tau, policy.mode).tolist()
        factors = [grid.factor or policy.factors[index] for grid, index in zip(grids, chosen, strict=True)]
        if max_tokens is not None:
            self._tighten(grids, rows, max_tokens, factors)
        return pooled(grids, factors)

    def _tighten(self, grids: Sequence[VisualGrid], rows: Sequence[int], limit: int, factors: list[int]) -> None:
        """Other factors, in place, for the views of every row that is above the limit."""
        views_of: dict[int, list[int]] = defaultdict(list)
        for view, row in enumerate(rows):
            views_of[row].append(view)
        for row, views in views_of.items():
            if sum(grids[view].num_tokens(factors[view]) for view in views) <= limit:
                continue
            try:
                for view, factor in zip(views, self._shared([grids[view] for view in views], limit), strict=True):
                    factors[view] = factor
            except BudgetError as error:
                raise BudgetError(f"row {row}: {error}") from error

    def _shared(self, grids: Sequence[VisualGrid], limit: int) -> list[int]:
        """The factor of each view of one row."""
        policy = self.policy
        sigmas = sigmas_of_grids(grids, policy.factors, "residual", policy.normalization).tolist()
        # A wanted factor is the only choice there is.
        options = [policy.factors if grid.factor is None else (grid.factor,) * len(policy.factors) for grid in grids]
        losses = [row if grid.factor is None else [0.0] * len(row) for grid, row in zip(grids, sigmas, strict=True)]
        tokens = [[grid.num_tokens(factor) for factor in factors] for grid, factors in zip(grids, options, strict=True)]
        chosen = allocate(losses, tokens, limit)
        return [factors[index] for factors, index in zip(options, chosen, strict=True)]


def _check(grids: Sequence[VisualGrid], rows: Sequence[int]) -> None:
    if len(rows) != len(grids):
        raise PlaceholderError(f"rows: expected one for each of {len(grids)} views, got {len(rows)}")
    for view, grid in enumerate(grids):
        if grid.factor is not None and not (type(grid.factor) is int and grid.factor >= 1):
            raise PolicyError(f"view {view}, factor: expected an integer of at least 1, got {grid.factor!r}")
