import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vlmpress_services.pipeline.pareto.front import front


def reference(costs: list[tuple[float, ...]]) -> list[bool]:
    """Every point against every other, by the definition."""

    def beats(one: tuple[float, ...], other: tuple[float, ...]) -> bool:
        pairs = list(zip(one, other, strict=True))
        return all(a <= b for a, b in pairs) and any(a < b for a, b in pairs)

    return [not any(beats(other, point) for other in costs) for point in costs]


def points(dimensions: int) -> st.SearchStrategy[list[tuple[float, ...]]]:
    # Few values, so that many are equal.
    value = st.one_of(st.integers(0, 4).map(float), st.floats(-1e6, 1e6, allow_nan=False))
    return st.lists(st.tuples(*[value] * dimensions), max_size=24)


@given(st.integers(1, 4).flatmap(points))
def test_front_is_the_definition_s(costs: list[tuple[float, ...]]) -> None:
    assert front(costs) == reference(costs)


def test_many_points_in_any_order() -> None:
    generator = np.random.default_rng(0)
    costs = [tuple(row) for row in generator.integers(0, 6, (200, 3)).tolist()]
    expected = reference(costs)
    assert front(costs) == expected
    order = generator.permutation(200)
    assert front([costs[place] for place in order]) == [expected[place] for place in order]


def test_equal_points_are_on_it_together_and_infinities_count() -> None:
    assert front([(1, 2), (1, 2), (2, 1), (2, 2)]) == [True, True, True, False]
    assert front([(float("inf"), 0), (0, float("-inf"))]) == [False, True]
    assert front([]) == []


@pytest.mark.parametrize("costs", [[(1, 2), (1,)], [(float("nan"), 1)]])
def test_what_cannot_be_compared_is_refused(costs: list[tuple[float, ...]]) -> None:
    for order in itertools.permutations(costs):
        with pytest.raises(ValueError, match=r"^costs: expected numbers"):
            front(order)
