"""Which points no other one beats."""

from collections.abc import Sequence


def front(costs: Sequence[Sequence[float]]) -> list[bool]:
    """Whether each point is on the Pareto front: no other is as good in everything and better in something.

    Args:
        costs: [N][D], less is better; equal points are on it together.

    Raises:
        ValueError: A cost is not a number, or points differ in how many they have.
    """
    points = [tuple(map(float, point)) for point in costs]
    if len({len(point) for point in points}) > 1 or any(value != value for point in points for value in point):
        raise ValueError(f"costs: expected numbers, as many for each point, got {points!r:.200}")
    # In this order whatever beats a point stands before it.
    kept: list[tuple[float, ...]] = []
    for point in sorted(set(points)):
        if not any(all(a <= b for a, b in zip(other, point, strict=True)) for other in kept):
            kept.append(point)
    best = set(kept)
    return [point in best for point in points]
