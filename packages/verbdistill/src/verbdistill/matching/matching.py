"""Which teacher target each student target learns from (VLsI, Algorithm 1).

t_s, t_l: number of student and teacher targets.
"""

import math

import torch
from torch import Tensor

from verbdistill.errors import MatchingError

STRATEGIES = ("vlsi",)
_EPS = 1e-6


def match_layers(
    kld: Tensor, *, strategy: str = "vlsi", scale: float = 2.0, generator: torch.Generator | None = None
) -> list[int]:
    """Draws one teacher target for each student target, in ascending order; kld [t_s, t_l] in nats.

    Student target i draws from the teacher targets after the one drawn for i - 1, as far as leaves
    enough for the student targets to come, with the probabilities of `draw_probabilities`.
    The draw is not differentiated. Source: VLsI, Section 3.2, Algorithm 1.

    Args:
        kld: KL(teacher target || student target), student targets in rows.
        strategy: One of `STRATEGIES`.
        scale: Of the adaptive temperature, positive.
        generator: A CPU generator; the same state gives the same draw.

    Returns:
        0-based teacher targets, one a student target, strictly ascending.

    Raises:
        MatchingError: Unknown strategy, wrong shape, a value that is not finite, or a bad scale.
    """
    if strategy not in STRATEGIES:
        raise MatchingError(f"strategy: expected one of {', '.join(STRATEGIES)}, got {strategy!r}")
    _check(kld, scale)
    kld = kld.detach().to("cpu", torch.float64)
    num_student, num_teacher = kld.shape
    matches: list[int] = []
    for target in range(num_student):
        candidates = candidate_range(target, matches[-1] if matches else None, num_student, num_teacher)
        probabilities = draw_probabilities(kld[target, candidates.start : candidates.stop], scale)
        drawn = int(torch.multinomial(probabilities, 1, generator=generator))
        matches.append(candidates.start + drawn)
    return matches


def candidate_range(target: int, previous: int | None, num_student: int, num_teacher: int) -> range:
    """Teacher targets that student target `target` may draw, `previous` being its predecessor's; never empty."""
    first = 0 if previous is None else previous + 1
    return range(first, num_teacher - num_student + target + 1)


def draw_probabilities(kld: Tensor, scale: float) -> Tensor:
    """softmax(-kld / T) with T = scale / (max - min + 1e-6) over the candidates; kld [n] in nats -> [n]."""
    temperature = scale / (kld.max() - kld.min() + _EPS)
    return torch.softmax(-kld / temperature, dim=0)


def _check(kld: Tensor, scale: float) -> None:
    if kld.ndim != 2 or kld.shape[0] < 1 or kld.shape[1] < kld.shape[0]:
        raise MatchingError(f"kld: expected [t_s, t_l] with 1 <= t_s <= t_l, got shape {list(kld.shape)}")
    if not kld.is_floating_point() or not bool(torch.isfinite(kld).all()):
        raise MatchingError("kld: expected finite floating-point values, got NaN, infinity or another type")
    if not (math.isfinite(scale) and scale > 0):
        raise MatchingError(f"scale: expected a positive number, got {scale}")
