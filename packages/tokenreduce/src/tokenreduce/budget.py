"""Several views and one limit of visual tokens: the factors that fit and throw away least."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from tokenreduce.errors import BudgetError
from tokenreduce.planning import ImagePlan, make_plans
from tokenreduce.policy import DEFAULT_FACTORS
from tokenreduce.reducing import Features, as_views
from tokenreduce.sigma import sigmas_of_grids

# Views times steps of tokens, one byte each while a choice is traced back: 256 MiB.
MAX_CELLS = 1 << 28


def allocate(sigmas: Any, tokens: Any, limit: int) -> list[int]:
    """The index of each view's factor: tokens within the limit, and the least sum of sigma there is.

    Exact, by dynamic programming over the tokens (a multiple-choice knapsack). Of equal sums the one with fewer
    tokens is taken; of those, the one whose last view has the smaller index, then the last but one, and so on.

    Args:
        sigmas: What each view loses at each factor, [N, F], finite and not negative: sigma in mode "residual".
        tokens: Tokens of each view at each factor, integers [N, F], in any order.
        limit: Visual tokens of all views together.

    Raises:
        BudgetError: Even the fewest tokens of all views are above the limit, or the numbers do not fit together.
    """
    losses, counts = _checked(sigmas, tokens)
    if len(losses) == 0:
        return []
    least = counts.min(axis=1)
    if limit < least.sum():
        raise BudgetError(f"limit: expected at least {least.sum()} visual tokens for {len(losses)} views, got {limit}")
    # Only what a choice adds to the least matters, in steps of the common divisor: 16 for 576, 144 and 64 tokens.
    extra = counts - least[:, None]
    step = max(int(np.gcd.reduce(extra, axis=None)), 1)
    weights = extra // step
    capacity = min((limit - int(least.sum())) // step, int(weights.max(axis=1).sum()))
    if len(losses) * (capacity + 1) > MAX_CELLS:
        raise BudgetError(
            f"limit: expected at most {MAX_CELLS} views times steps of {step} tokens, got {len(losses)} x {capacity}"
        )
    return _cheapest(losses, weights, capacity)


def plan_budget(
    features: Features,
    limit: int,
    factors: Sequence[int] = DEFAULT_FACTORS,
    normalize: str = "image",
) -> list[ImagePlan]:
    """Plans for images [B, H, W, D], grids [H, W, D] or views that stay within `limit` tokens; sigma is residual.

    No tau takes part: with a generous limit every view keeps all its tokens (unless sigma is exactly 0).

    Raises:
        BudgetError: Even the largest factors give more tokens than the limit.
        FeatureError: The features are not finite, not floating or have an empty side.
        PolicyError: factors or normalize is out of range.
    """
    sigmas = sigmas_of_grids(features, factors, "residual", normalize)
    views = as_views(features)
    tokens = [[view.num_tokens(factor) for factor in factors] for view in views]
    return make_plans(views, factors, allocate(sigmas, tokens, limit), sigmas)


def _cheapest(losses: NDArray[np.float64], weights: NDArray[np.int64], capacity: int) -> list[int]:
    """Index of each view's choice, [N, F] losses and weights, the sum of weights at most `capacity`."""
    num_views, num_factors = losses.shape
    # Least loss of the views so far for every exact weight. Doubles: sums of float32 sigmas are exact in them, so
    # that equal sums are equal whatever their order.
    best = np.full(capacity + 1, np.inf)
    best[0] = 0.0
    choice = np.zeros((num_views, capacity + 1), dtype=np.min_scalar_type(num_factors - 1))
    for view in range(num_views):
        after = np.full(capacity + 1, np.inf)
        for index in range(num_factors):
            weight = int(weights[view, index])
            if weight > capacity:
                continue
            loss = best[: capacity + 1 - weight] + losses[view, index]
            better = loss < after[weight:]
            after[weight:][better] = loss[better]
            choice[view, weight:][better] = index
        best = after
    # The first of equal minima has the fewest tokens.
    left = int(best.argmin())
    chosen = []
    for view in reversed(range(num_views)):
        index = int(choice[view, left])
        chosen.append(index)
        left -= int(weights[view, index])
    return chosen[::-1]


def _checked(sigmas: Any, tokens: Any) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    losses, counts = (x.detach().cpu().numpy() if isinstance(x, torch.Tensor) else x for x in (sigmas, tokens))
    losses, counts = np.asarray(losses, dtype=np.float64), np.asarray(counts)
    if losses.size == counts.size == 0:
        return np.zeros((0, 1)), np.zeros((0, 1), dtype=np.int64)
    if losses.ndim != 2 or losses.shape != counts.shape:
        raise BudgetError(
            f"sigmas, tokens: expected one shape [N, F], got {list(losses.shape)} and {list(counts.shape)}"
        )
    if not (np.isfinite(losses).all() and (losses >= 0).all()):
        raise BudgetError("sigmas: expected finite numbers >= 0, got others")
    if counts.dtype.kind not in "iu" or (counts < 0).any():
        raise BudgetError(f"tokens: expected integers >= 0, got {counts.dtype} from {counts.min()}")
    return losses, counts.astype(np.int64)
