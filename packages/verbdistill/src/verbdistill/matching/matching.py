"""Which teacher target each student target learns from (VLsI, Algorithm 1)."""

import torch
from torch import Tensor

from verbdistill.errors import MatchingError
from verbdistill.matching.strategies import match_weights


def match_layers(
    kld: Tensor, *, strategy: str = "vlsi", scale: float = 2.0, generator: torch.Generator | None = None
) -> list[int]:
    """One teacher target for each student target; kld [t_s, t_l] in nats.

    By default student target i draws from the teacher targets after the one drawn for i - 1, as far as leaves
    enough for the student targets to come: the result ascends strictly. The draw is not differentiated.
    Source: VLsI, Section 3.2, Algorithm 1.

    Args:
        kld: KL(teacher target || student target), student targets in rows.
        strategy: One that gives one teacher target each: see `match_weights`, of which this is the short form.
        scale: Of the adaptive temperature, positive.
        generator: A CPU generator; the same state gives the same draw.

    Returns:
        0-based teacher targets, one a student target.

    Raises:
        MatchingError: A strategy that is unknown or averages several teacher targets, wrong shape, a value that
            is not finite, or a bad scale.
    """
    if strategy == "bottom_3":
        raise MatchingError("strategy: expected one that gives one teacher target each, got 'bottom_3': match_weights")
    return [target for (target,) in match_weights(kld, strategy, scale=scale, generator=generator).targets]
