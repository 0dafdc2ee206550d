"""What a policy decides for images, without pooling them."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from tokenreduce.dfmr import num_tokens
from tokenreduce.errors import FeatureError
from tokenreduce.policy import ReductionPolicy
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


def plan(features: torch.Tensor | Sequence[torch.Tensor], policy: ReductionPolicy) -> tuple[list[ImagePlan], float]:
    """One plan for each image of [B, H, W, D], or of grids [H, W, D] of any sizes, and the mean token count.

    Raises:
        FeatureError: There is no image, or the features are not finite, not floating or have an empty side.
    """
    if len(features) == 0:
        raise FeatureError("features: expected at least one image, got none")
    sigmas = sigmas_of_grids(features, policy.factors, policy.mode, policy.normalization)
    images = []
    chosen = choose_indices(sigmas, policy.tau, policy.mode).tolist()
    for grid, index, row in zip(features, chosen, sigmas.tolist(), strict=True):
        factor = policy.factors[index]
        tokens = num_tokens(grid.shape[0], grid.shape[1], factor)
        images.append(ImagePlan(factor=factor, num_tokens=tokens, sigmas=tuple(row)))
    return images, sum(image.num_tokens for image in images) / len(images)
