"""What every way to reduce visual tokens takes and gives; `attach` puts any of them into a model.

Shape suffixes: H and W sides of a grid, N tokens left of it, D channels.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class VisualGrid:
    """One view on its grid: an image, AnyRes's base or detail view, a tile of InternVL, a frame of a video.

    Attributes:
        features: [H, W, D], without CLS and without padding.
        attention: How much attention each position receives in the tower, [H, W]; None unless a reducer needs it.
        num_row_tokens: Tokens the model adds to each row of the grid itself (AnyRes: 1, the newline).
        factor: Pooling factor the caller wants instead of the reducer's own choice.
    """

    features: Tensor
    attention: Tensor | None = None
    num_row_tokens: int = 0
    factor: int | None = None

    def num_tokens(self, factor: int) -> int:
        """Tokens the language model sees of this view pooled by `factor`."""
        height, width = self.features.shape[:2]
        return -(-height // factor) * (-(-width // factor) + self.num_row_tokens)


Features = Tensor | Sequence[Tensor] | Sequence[VisualGrid]
"""A batch [B, H, W, D], or grids [H, W, D] of any sizes, or views."""


def as_views(features: Features) -> list[VisualGrid]:
    """One view for each image of a batch, each grid, each view."""
    return [grid if isinstance(grid, VisualGrid) else VisualGrid(features=grid) for grid in features]


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class ReducedGrid:
    """What is left of one view.

    Attributes:
        tokens: [N, D], in the features' own type, in raster order of their places.
        places: Row and column of each token on the grid, the mean over what it stands for, float32 [N, 2].
        shape: (h, w) where the tokens are still a row-major grid; None where they are a selection.
        factor: Pooling factor of a grid; None of a selection.
    """

    tokens: Tensor
    places: Tensor
    shape: tuple[int, int] | None = None
    factor: int | None = None


class Reducer(Protocol):
    """A way to reduce visual tokens, before the projector."""

    @property
    def needs_attention(self) -> bool:
        """Whether `VisualGrid.attention` must be there; a constant of most classes."""
        ...

    @property
    def pixel_factor(self) -> int:
        """What the images' sides are divided by before the tower; 1 for all but downsampling."""
        ...

    def reduce(
        self, grids: Sequence[VisualGrid], *, rows: Sequence[int], max_tokens: int | None = None
    ) -> list[ReducedGrid]:
        """Reduces every view of a batch; gradients flow.

        Args:
            grids: All views, in the order of their placeholders.
            rows: Which row of the batch each belongs to.
            max_tokens: Limit of `num_tokens` summed over the views of each row; None: none.

        Raises:
            FeatureError: Features are not finite, or have an empty side.
            BudgetError: A row's limit is below what the largest factors give.
            PolicyError: A limit or a wanted factor was given to a reducer that has no use for it.
        """
        ...
