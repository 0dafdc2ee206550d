"""How teacher targets are chosen for each student target: VLsI's Algorithm 1 and the ablations of Table 4e.

t_s, t_l: number of student and teacher targets; i, j: a student's and a teacher's, 0-based.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from verbdistill.errors import MatchingError

STRATEGIES = ("random", "uniform", "bottom_1", "bottom_3", "multinomial", "search_range", "order", "vlsi")
"""In Table 4e's order; the last four draw from softmax(-kld / T) and add one condition each to the one before."""

_LOWEST = {"bottom_1": 1, "bottom_3": 3}
_EPS = 1e-6


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Match:
    """What each student target learns from.

    Attributes:
        weights: Share of each pair's loss, float32 [t_s, t_l] on the CPU; a row sums to 1.
        targets: 0-based teacher targets of every student target, ascending; those with a weight.
    """

    weights: Tensor
    targets: tuple[tuple[int, ...], ...]


def match_weights(
    kld: Tensor, strategy: str = "vlsi", *, scale: float = 2.0, generator: torch.Generator | None = None
) -> Match:
    """Chooses teacher targets for every student target; kld [t_s, t_l] in nats.

    - "random": any teacher target, all as likely.
    - "uniform": i * floor(t_l / t_s), whatever the losses.
    - "bottom_1", "bottom_3": the mean over the pairs of lowest loss (all, where there are fewer than three).
    - "multinomial": any, drawn from softmax(-kld).
    - "search_range": the same among i .. t_l - t_s + i.
    - "order": the same among those after the one drawn for i - 1, at most t_l - t_s + i.
    - "vlsi": as "order", at the temperature of `draw_probabilities`.

    Nothing is differentiated. Source: VLsI, Algorithm 1, Table 4e and Appendix D.

    Args:
        kld: KL(teacher target || student target), student targets in rows.
        strategy: One of `STRATEGIES`.
        scale: Of the adaptive temperature, positive; only "vlsi" reads it.
        generator: A CPU generator; the same state and the same losses give the same match on every rank.

    Raises:
        MatchingError: Unknown strategy, wrong shape, a value that is not finite, or a bad scale.
    """
    _check(kld, strategy, scale)
    kld = kld.detach().to("cpu", torch.float64)
    num_student, num_teacher = kld.shape
    if strategy == "uniform":
        chosen = [[target * (num_teacher // num_student)] for target in range(num_student)]
    elif strategy in _LOWEST:
        # Stable: of equal losses the shallower teacher target.
        chosen = [sorted(row.argsort(stable=True)[: _LOWEST[strategy]].tolist()) for row in kld]
    else:
        chosen = [[drawn] for drawn in _draw(kld, strategy, scale, generator)]
    weights = torch.zeros(num_student, num_teacher)
    for target, teachers in enumerate(chosen):
        weights[target, teachers] = 1 / len(teachers)
    return Match(weights=weights, targets=tuple(tuple(teachers) for teachers in chosen))


def candidate_range(strategy: str, target: int, previous: int | None, num_student: int, num_teacher: int) -> range:
    """Teacher targets that student target `target` may draw, `previous` being its predecessor's; never empty."""
    if strategy in ("random", "multinomial"):
        return range(num_teacher)
    last = num_teacher - num_student + target
    if strategy == "search_range":
        return range(target, last + 1)
    return range(0 if previous is None else previous + 1, last + 1)


def draw_probabilities(kld: Tensor, strategy: str, scale: float) -> Tensor:
    """softmax(-kld / T) over the candidates; kld [n] in nats -> [n].

    T = scale / (max - min + 1e-6) over the candidates for "vlsi", infinite for "random", else 1.
    """
    if strategy == "random":
        return torch.full_like(kld, 1 / len(kld))
    # The lowest loss is taken off first, so that a large one divided by a small temperature stays finite.
    above = kld - kld.min()
    temperature = scale / (above.max() + _EPS) if strategy == "vlsi" else 1.0
    return torch.softmax(-above / temperature, dim=0)


def _draw(kld: Tensor, strategy: str, scale: float, generator: torch.Generator | None) -> list[int]:
    num_student, num_teacher = kld.shape
    drawn: list[int] = []
    for target in range(num_student):
        candidates = candidate_range(strategy, target, drawn[-1] if drawn else None, num_student, num_teacher)
        probabilities = draw_probabilities(kld[target, candidates.start : candidates.stop], strategy, scale)
        drawn.append(candidates.start + int(torch.multinomial(probabilities, 1, generator=generator)))
    return drawn


def _check(kld: Tensor, strategy: str, scale: float) -> None:
    if strategy not in STRATEGIES:
        raise MatchingError(f"strategy: expected one of {', '.join(STRATEGIES)}, got {strategy!r}")
    if kld.ndim != 2 or kld.shape[0] < 1 or kld.shape[1] < kld.shape[0]:
        raise MatchingError(f"kld: expected [t_s, t_l] with 1 <= t_s <= t_l, got shape {list(kld.shape)}")
    if not kld.is_floating_point() or not bool(torch.isfinite(kld).all()):
        raise MatchingError("kld: expected finite floating-point values, got NaN, infinity or another type")
    if not (math.isfinite(scale) and scale > 0):
        raise MatchingError(f"scale: expected a positive number, got {scale}")
