import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from stagetrain.compressors import Units, compressor_named
from stagetrain.compressors.k_means import NUM_STEPS, fill_empty


def reference(points: list[list[float]], stride: int) -> list[int]:
    """Clusters of one unit, point by point in double precision."""

    def distance(first: list[float], second: list[float]) -> float:
        return sum((a - b) ** 2 for a, b in zip(first, second, strict=True)) ** 0.5

    def mean(members: list[list[float]]) -> list[float]:
        return [sum(values) / len(members) for values in zip(*members, strict=True)]

    slots = [index // stride for index in range(len(points))]
    centroids: list[list[float]] = [[] for _ in range(slots[-1] + 1)]
    for _ in range(NUM_STEPS):
        for cluster in range(len(centroids)):
            members = [point for point, slot in zip(points, slots, strict=True) if slot == cluster]
            if members:
                centroids[cluster] = mean(members)
        slots = [min(range(len(centroids)), key=lambda c: distance(point, centroids[c])) for point in points]
    return reference_fill(slots, [[distance(point, centroid) for centroid in centroids] for point in points])


def reference_fill(slots: list[int], distances: list[list[float]]) -> list[int]:
    """Fills empty clusters one by one with the farthest point that is not the nearest of its own cluster."""
    own = [row[slot] for row, slot in zip(distances, slots, strict=True)]
    by_distance = sorted(range(len(slots)), key=lambda point: own[point])
    used = {slot: next(point for point in by_distance if slots[point] == slot) for slot in set(slots)}
    movable = [point for point in by_distance if point not in used.values()]
    filled = list(slots)
    for cluster in range(len(distances[0])):
        if cluster not in used:
            filled[movable.pop()] = cluster
    return filled


def assign(states: torch.Tensor, stride: int) -> list[list[int]]:
    return compressor_named("k_means").assign(Units((1, states.shape[1]), states), stride).tolist()


@pytest.mark.parametrize(("num_tokens", "stride"), [(12, 3), (13, 4), (7, 2), (3, 5), (9, 1), (40, 6)])
def test_clusters_are_those_of_a_point_by_point_reference(num_tokens: int, stride: int) -> None:
    torch.manual_seed(num_tokens)
    states = torch.randn(3, num_tokens, 4)
    assert assign(states, stride) == [reference(unit.double().tolist(), stride) for unit in states]


def test_points_apart_become_the_clusters_they_are() -> None:
    # Two groups, interleaved: windows of neighbours would mix them.
    states = torch.tensor([[[0.0], [9.0], [0.2], [9.1], [0.1], [9.2]]])
    slots = assign(states, 3)[0]
    assert slots[0] == slots[2] == slots[4] != slots[1] == slots[3] == slots[5]


def test_states_of_large_norm_are_told_apart() -> None:
    states = torch.tensor([[[0.0], [0.0], [1.0], [0.0], [1.0], [1.0]]]) + 1e6
    slots = assign(states.repeat(1, 1, 3), 3)[0]
    assert slots == [0, 0, 1, 0, 1, 1]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_clustered_in_float32(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    states = (torch.randn(2, 20, 8) * 100).to(dtype)
    assert assign(states, 4) == assign(states.float(), 4)


@settings(max_examples=100, deadline=None)
@given(data=st.data(), num_clusters=st.integers(1, 6))
def test_empty_clusters_are_filled_with_the_farthest_points(data: st.DataObject, num_clusters: int) -> None:
    num_points = data.draw(st.integers(num_clusters, 9))
    slots = data.draw(st.lists(st.integers(0, num_clusters - 1), min_size=num_points, max_size=num_points))
    seed = data.draw(st.integers(0, 999))
    distances = torch.rand(1, num_points, num_clusters, generator=torch.Generator().manual_seed(seed))
    filled = fill_empty(torch.tensor([slots]), distances)[0].tolist()
    assert set(filled) == set(range(num_clusters))
    kept = [point for point, (old, new) in enumerate(zip(slots, filled, strict=True)) if old == new]
    assert num_points - len(kept) == num_clusters - len(set(slots))
    moved = {point for point in range(num_points) if point not in kept}
    expected = reference_fill(slots, distances[0].tolist())
    assert moved == {point for point in range(num_points) if expected[point] != slots[point]}


def test_equal_states_still_fill_every_cluster() -> None:
    assert sorted(assign(torch.ones(1, 6, 2), 1)[0]) == list(range(6))
    assert set(assign(torch.zeros(1, 576, 2), 2)[0]) == set(range(288))
