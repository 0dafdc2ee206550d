"""Plans for views whose grids differ in size."""

from collections.abc import Sequence

import torch

from tokenreduce.planning import ImagePlan
from tokenreduce.policy import ReductionPolicy
from tokenreduce.reducing import VisualGrid
from tokenreduce.sigma import choose_indices, sigmas_of_grids


def view_sigmas(views: Sequence[VisualGrid], factors: Sequence[int], mode: str, normalization: str) -> torch.Tensor:
    """Sigma of every factor for every view, float32 [N, F].

    Raises:
        FeatureError: A view's features are not finite, or of no floating type.
        PolicyError: factors, mode or normalization is out of range.
    """
    return sigmas_of_grids([view.features for view in views], factors, mode, normalization)


def plan_views(views: Sequence[VisualGrid], policy: ReductionPolicy) -> list[ImagePlan]:
    """What a policy decides for each view; errors as in `view_sigmas`."""
    sigmas = view_sigmas(views, policy.factors, policy.mode, policy.normalization)
    chosen = choose_indices(sigmas, policy.tau, policy.mode).tolist()
    return _plans(views, policy.factors, chosen, sigmas)


def plan_views_within(
    views: Sequence[VisualGrid], max_tokens: int, factors: Sequence[int], normalization: str
) -> list[ImagePlan]:
    """The factors that keep all views together inside a limit and throw away least; mode "residual".

    Raises:
        BudgetError: The limit is below what the largest factors give. Others as in `view_sigmas`.
    """
    from tokenreduce.budget import allocate

    sigmas = view_sigmas(views, factors, "residual", normalization)
    tokens = torch.tensor([[view.num_tokens(factor) for factor in factors] for view in views])
    return _plans(views, factors, allocate(sigmas, tokens, max_tokens), sigmas)


def _plans(
    views: Sequence[VisualGrid], factors: Sequence[int], chosen: Sequence[int], sigmas: torch.Tensor
) -> list[ImagePlan]:
    return [
        ImagePlan(factor=factors[index], num_tokens=view.num_tokens(factors[index]), sigmas=tuple(row))
        for view, index, row in zip(views, chosen, sigmas.tolist(), strict=True)
    ]
