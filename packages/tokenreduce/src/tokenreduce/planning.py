"""What a policy decides for images, without pooling them."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from tokenreduce.errors import FeatureError
from tokenreduce.policy import ReductionPolicy
from tokenreduce.reducing import Features, VisualGrid, as_views
from tokenreduce.sigma import choose_indices, sigmas_of_grids


@dataclass(frozen=True, kw_only=True, slots=True)
class ImagePlan:
    """What DFMR decides for one image.

    Attributes:
        factor: Pooling factor along each side.
        num_tokens: Visual tokens left.
        sigmas: sigma of each factor, in the order of the policy's factors.
    """

    factor: int
    num_tokens: int
    sigmas: tuple[float, ...]


def plan(features: Features, policy: ReductionPolicy) -> tuple[list[ImagePlan], float]:
    """One plan for each image of [B, H, W, D], each grid [H, W, D] or each view, and the mean token count.

    Raises:
        FeatureError: There is no image, or the features are not finite, not floating or have an empty side.
    """
    if len(features) == 0:
        raise FeatureError("features: expected at least one image, got none")
    sigmas = sigmas_of_grids(features, policy.factors, policy.mode, policy.normalization)
    chosen = choose_indices(sigmas, policy.tau, policy.mode).tolist()
    images = make_plans(as_views(features), policy.factors, chosen, sigmas)
    return images, sum(image.num_tokens for image in images) / len(images)


def make_plans(
    views: Sequence[VisualGrid], factors: Sequence[int], chosen: Sequence[int], sigmas: torch.Tensor
) -> list[ImagePlan]:
    """The plans that the indices of the chosen factors stand for."""
    return [
        ImagePlan(factor=factors[index], num_tokens=view.num_tokens(factors[index]), sigmas=tuple(row))
        for view, index, row in zip(views, chosen, sigmas.tolist(), strict=True)
    ]
