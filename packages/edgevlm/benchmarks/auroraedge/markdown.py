"""Markdown tables."""

from collections.abc import Iterable, Sequence
from statistics import fmean, stdev


def table(title: str, head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [f"**{title}**", "", f"| {' | '.join(head)} |", f"|{'---|' * len(head)}"]
    return "\n".join([*lines, *(f"| {' | '.join(row)} |" for row in rows)])


def spread(values: Iterable[float], digits: int = 3) -> str:
    """Mean and sample standard deviation; a dash for nothing."""
    numbers = list(values)
    if len(numbers) < 2:
        return f"{numbers[0]:.{digits}f}" if numbers else "-"
    return f"{fmean(numbers):.{digits}f} +- {stdev(numbers):.{digits}f}"
