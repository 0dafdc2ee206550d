"""DFMR as a reducer, without a budget: in use until `tokenreduce.reducers.dfmr` is there."""

from collections.abc import Sequence
from typing import ClassVar

import torch

from tokenreduce.dfmr import dfmr, pool
from tokenreduce.errors import PolicyError
from tokenreduce.policy import ReductionPolicy
from tokenreduce.reducing import ReducedGrid, VisualGrid


class DfmrReducer:
    """Pools each view as far as the policy allows."""

    needs_attention: ClassVar[bool] = False

    def __init__(self, policy: ReductionPolicy) -> None:
        self.policy = policy

    @property
    def pixel_factor(self) -> int:
        """Images stay as large as they are."""
        return 1

    def reduce(
        self, grids: Sequence[VisualGrid], *, rows: Sequence[int], max_tokens: int | None = None
    ) -> list[ReducedGrid]:
        """See `Reducer.reduce`."""
        if max_tokens is not None:
            raise PolicyError(f"max_tokens: expected none, got {max_tokens}")
        return [self._reduce(grid) for grid in grids]

    def _reduce(self, grid: VisualGrid) -> ReducedGrid:
        policy, features = self.policy, grid.features[None]
        chosen = grid.factor
        if chosen is None:
            chosen = dfmr(features, policy.tau, policy.factors, policy.mode, policy.normalization).factors[0]
        height, width = grid.features.shape[:2]
        rows, columns = torch.arange(height).float(), torch.arange(width).float()
        places = torch.stack(torch.meshgrid(rows, columns, indexing="ij"), dim=-1)[None]
        return ReducedGrid(
            tokens=pool(features, [chosen])[0],
            places=pool(places, [chosen])[0].to(features.device),
            shape=(-(-height // chosen), -(-width // chosen)),
            factor=chosen,
        )
