"""What is said of a run's losses."""

from collections.abc import Sequence


def tail_mean(losses: Sequence[float]) -> float:
    """Mean of the last tenth of a run's losses: one batch's says little."""
    tail = losses[-max(1, len(losses) // 10) :]
    return sum(tail) / len(tail)
