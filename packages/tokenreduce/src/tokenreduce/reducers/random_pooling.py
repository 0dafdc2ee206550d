"""A random factor for every view: the baseline "random" of LLaVA-Zip, section 4.2."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, Self

import torch

from tokenreduce.policy import DEFAULT_FACTORS, check_factors
from tokenreduce.reducers.drawing import generator_of
from tokenreduce.reducers.views import check_call, check_count, pooled
from tokenreduce.reducing import ReducedGrid, VisualGrid


@dataclass(frozen=True, kw_only=True, slots=True)
class RandomPooling:
    """Pools every view by a factor drawn uniformly; a view's own wanted factor wins.

    The draw depends on (seed, step, stream, index of the view in the call), and on nothing else: the same call
    gives the same result twice, and training needs a `ReductionCallback` to move on from step to step.

    Attributes:
        factors: What to draw from, ascending, from 1.
        seed: Of all draws.
        step: See `Drawing.keyed`.
        stream: See `Drawing.keyed`.

    Raises:
        PolicyError: A field is out of range.
    """

    needs_attention: ClassVar[bool] = False
    pixel_factor: ClassVar[int] = 1
    factors: tuple[int, ...] = DEFAULT_FACTORS
    seed: int = 0
    step: int = 0
    stream: int = 0

    def __post_init__(self) -> None:
        check_factors(self.factors)
        for name in ("seed", "step", "stream"):
            check_count(name, getattr(self, name), least=0)

    def keyed(self, *, step: int, stream: int = 0) -> Self:
        """See `Drawing.keyed`."""
        return replace(self, step=step, stream=stream)

    def reduce(
        self, grids: Sequence[VisualGrid], *, rows: Sequence[int], max_tokens: int | None = None
    ) -> list[ReducedGrid]:
        """See `Reducer.reduce`; has no budget."""
        check_call(self, grids, max_tokens, takes_factors=True)
        return pooled(grids, [grid.factor or self.draw(view) for view, grid in enumerate(grids)])

    def draw(self, view: int) -> int:
        """The factor of the view with this index in the call."""
        generator = generator_of(self.seed, self.step, self.stream, view)
        return self.factors[int(torch.randint(len(self.factors), (1,), generator=generator))]
