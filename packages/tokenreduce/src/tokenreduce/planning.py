"""What a policy decides for images, without pooling them."""

from dataclasses import dataclass

import torch

from tokenreduce.dfmr import choose_indices, num_tokens, sigma_per_factor
from tokenreduce.policy import ReductionPolicy


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


def plan(features: torch.Tensor, policy: ReductionPolicy) -> tuple[list[ImagePlan], float]:
    """One plan for each image of [B, H, W, D], and the mean token count.

    Raises:
        FeatureError: The features are not a finite floating [B, H, W, D] without an empty side.
    """
    sigmas = sigma_per_factor(features, policy.factors, policy.mode, policy.normalization)
    _, height, width, _ = features.shape
    images = []
    for index, row in zip(choose_indices(sigmas, policy.tau, policy.mode).tolist(), sigmas.tolist(), strict=True):
        factor = policy.factors[index]
        images.append(ImagePlan(factor=factor, num_tokens=num_tokens(height, width, factor), sigmas=tuple(row)))
    return images, sum(image.num_tokens for image in images) / len(images)
