import math
import random

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from verbdistill import MatchingError, match_layers
from verbdistill.matching.strategies import STRATEGIES, candidate_range, draw_probabilities, match_weights

DRAWN = ("random", "multinomial", "search_range", "order", "vlsi")


def reference_candidates(strategy, target, previous, num_student, num_teacher):
    """NOTES.md, word for word."""
    if strategy in ("random", "multinomial"):
        return list(range(num_teacher))
    if strategy == "search_range":
        return [j for j in range(num_teacher) if target <= j <= num_teacher - num_student + target]
    return [j for j in range(num_teacher) if previous < j <= num_teacher - num_student + target]


def reference_probabilities(values, strategy="vlsi", scale=2.0):
    temperature = {"vlsi": scale / (max(values) - min(values) + 1e-6), "random": math.inf}.get(strategy, 1.0)
    weights = [math.exp(-value / temperature) for value in values]
    return [weight / sum(weights) for weight in weights]


def reference_outcomes(kld, strategy, scale=2.0):
    """Probability of every possible match."""
    num_student, num_teacher = len(kld), len(kld[0])
    outcomes = {(): 1.0}
    for target, row in enumerate(kld):
        longer = {}
        for drawn, probability in outcomes.items():
            candidates = reference_candidates(strategy, target, drawn[-1] if drawn else -1, num_student, num_teacher)
            chances = reference_probabilities([row[j] for j in candidates], strategy, scale)
            for j, chance in zip(candidates, chances, strict=True):
                longer[*drawn, j] = probability * chance
        outcomes = longer
    return outcomes


shapes = st.tuples(st.integers(1, 6), st.integers(0, 6))


@given(shapes, st.integers(0, 2**30), st.floats(0.1, 10), st.sampled_from(STRATEGIES), st.sampled_from([1e-9, 1, 1e6]))
@settings(deadline=None, max_examples=150)
def test_every_match_stays_within_its_ranges(shape, seed, scale, strategy, size):
    num_student, num_teacher = shape[0], sum(shape)
    generator = torch.Generator().manual_seed(seed)
    kld = torch.rand(num_student, num_teacher, generator=generator) * size
    match = match_weights(kld, strategy, scale=scale, generator=generator)
    assert match.weights.shape == (num_student, num_teacher)
    assert match.weights.dtype == torch.float32
    torch.testing.assert_close(match.weights.sum(dim=1), torch.ones(num_student))
    assert len(match.targets) == num_student
    for row, targets in zip(match.weights, match.targets, strict=True):
        assert row.nonzero().flatten().tolist() == list(targets)
        assert len(targets) == (min(3, num_teacher) if strategy == "bottom_3" else 1)
    if strategy in DRAWN:
        previous = None
        for target, (drawn,) in enumerate(match.targets):
            candidates = candidate_range(strategy, target, previous, num_student, num_teacher)
            assert len(candidates) > 0
            assert drawn in candidates
            before = -1 if previous is None else previous
            assert list(candidates) == reference_candidates(strategy, target, before, num_student, num_teacher)
            previous = drawn
    if strategy in ("order", "vlsi"):
        drawn = [target for (target,) in match.targets]
        assert drawn == sorted(set(drawn))
        assert num_student - 1 <= drawn[-1] < num_teacher


def test_ranges_as_the_notes_read_them():
    # t_s = 7, t_l = 20: the first may take 0..13, the last at most 19.
    assert candidate_range("vlsi", 0, None, 7, 20) == range(14)
    assert candidate_range("vlsi", 1, 4, 7, 20) == range(5, 15)
    assert candidate_range("order", 6, 18, 7, 20) == range(19, 20)
    assert candidate_range("search_range", 6, 18, 7, 20) == range(6, 20)
    assert candidate_range("multinomial", 6, 18, 7, 20) == range(20)
    assert match_layers(torch.rand(3, 3)) == [0, 1, 2]


def test_uniform_takes_every_floor_of_the_ratio():
    match = match_weights(torch.rand(7, 20), "uniform")
    assert match.targets == ((0,), (2,), (4,), (6,), (8,), (10,), (12,))
    assert match_weights(torch.rand(3, 4), "uniform").targets == ((0,), (1,), (2,))


@given(st.lists(st.lists(st.integers(0, 4), min_size=5, max_size=5), min_size=1, max_size=5), st.sampled_from([1, 3]))
@settings(deadline=None, max_examples=60)
def test_bottom_k_takes_the_lowest_and_the_mean_of_them(rows, k):
    kld = torch.tensor(rows, dtype=torch.float64)
    match = match_weights(kld, f"bottom_{k}")
    for row, targets in zip(rows, match.targets, strict=True):
        # Ties: the shallower one.
        lowest = sorted(range(5), key=lambda j: (row[j], j))[:k]
        assert targets == tuple(sorted(lowest))
    means = (match.weights.double() * kld).sum(dim=1)
    expected = [sum(sorted(row)[:k]) / k for row in rows]
    torch.testing.assert_close(means, torch.tensor(expected, dtype=torch.float64), rtol=1e-6, atol=1e-6)


def test_bottom_3_of_two_teacher_targets_takes_both():
    match = match_weights(torch.rand(2, 2), "bottom_3")
    assert match.targets == ((0, 1), (0, 1))
    assert match.weights.tolist() == [[0.5, 0.5], [0.5, 0.5]]


@pytest.mark.parametrize("strategy", ["random", "multinomial", "vlsi"])
@pytest.mark.parametrize("scale", [0.5, 2.0])
def test_probabilities_match_the_reference(strategy, scale):
    values = [0.3, 2.5, 0.9, 1.1]
    got = draw_probabilities(torch.tensor(values, dtype=torch.float64), strategy, scale)
    expected = reference_probabilities(values, strategy, scale)
    torch.testing.assert_close(got, torch.tensor(expected, dtype=torch.float64))
    # All candidates alike: every one is as likely.
    torch.testing.assert_close(draw_probabilities(torch.ones(4), strategy, scale), torch.full((4,), 0.25))


def test_huge_losses_leave_finite_probabilities():
    for strategy in DRAWN:
        got = draw_probabilities(torch.tensor([3e200, 1e200, 1e200], dtype=torch.float64), strategy, 2.0)
        assert torch.isfinite(got).all()
        assert math.isclose(float(got.sum()), 1)


# Upper 1% points of chi-square by degrees of freedom: Wilson and Hilferty's approximation, within 1% from 3 on.
def highest_chi_square(freedom):
    return freedom * (1 - 2 / (9 * freedom) + 2.326 * math.sqrt(2 / (9 * freedom))) ** 3


@pytest.mark.parametrize("strategy", DRAWN)
def test_frequencies_match_the_softmax_over_the_candidates_only(strategy):
    # The first row's last value is out of the range of most, and would change the temperature if it were not.
    rows = [[0.2, 1.0, 0.6, 3.0], [2.0, 0.4, 1.5, 0.1]]
    expected = reference_outcomes(rows, strategy)
    kld = torch.tensor(rows, dtype=torch.float64)
    generator = torch.Generator().manual_seed(1)
    draws = 4000
    counts = dict.fromkeys(expected, 0)
    for _ in range(draws):
        counts[tuple(match_layers(kld, strategy=strategy, generator=generator))] += 1
    chi_square = sum((counts[key] - draws * p) ** 2 / (draws * p) for key, p in expected.items())
    assert len(expected) == {"order": 6, "vlsi": 6, "search_range": 9}.get(strategy, 16)
    assert min(expected.values()) * draws > 5
    assert chi_square < highest_chi_square(len(expected) - 1)


def test_the_chi_square_test_tells_the_strategies_apart():
    rows = [[0.2, 1.0, 0.6, 3.0], [2.0, 0.4, 1.5, 0.1]]
    draws = 4000
    expected, others = reference_outcomes(rows, "vlsi"), reference_outcomes(rows, "order")
    chi_square = sum((draws * (others[key] - p)) ** 2 / (draws * p) for key, p in expected.items())
    assert chi_square > 3 * highest_chi_square(len(expected) - 1)


def test_every_rank_draws_the_same_from_the_same_losses():
    kld = torch.rand(5, 12, requires_grad=True)
    for strategy in STRATEGIES:
        first, second = (match_weights(kld, strategy, generator=torch.Generator().manual_seed(7)) for _rank in range(2))
        assert first.targets == second.targets
        assert torch.equal(first.weights, second.weights)
        assert not first.weights.requires_grad


def test_draws_are_seeded_and_leave_the_global_generators_alone():
    kld = torch.rand(5, 12)
    draws = [match_layers(kld, generator=torch.Generator().manual_seed(seed)) for seed in (1, 1, 2, 3, 4)]
    assert draws[0] == draws[1]
    assert len({tuple(draw) for draw in draws}) > 1
    state, python_state = torch.random.get_rng_state(), random.getstate()
    for strategy in STRATEGIES:
        match_weights(kld, strategy, generator=torch.Generator().manual_seed(0))
    assert torch.equal(state, torch.random.get_rng_state())
    assert python_state == random.getstate()


@pytest.mark.parametrize("shape", [(3,), (0, 2), (3, 2), (1, 2, 3), (0, 0)])
def test_bad_shapes_are_refused(shape):
    for strategy in STRATEGIES:
        with pytest.raises(MatchingError, match="kld: expected"):
            match_weights(torch.zeros(shape), strategy)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_values_that_are_not_finite_are_refused(value):
    kld = torch.zeros(2, 3)
    kld[1, 2] = value
    with pytest.raises(MatchingError, match="finite"):
        match_layers(kld)


def test_bad_scale_strategy_and_type_are_refused():
    for scale in (0.0, -1.0, float("nan"), float("inf")):
        with pytest.raises(MatchingError, match="scale"):
            match_layers(torch.zeros(1, 1), scale=scale)
    with pytest.raises(MatchingError, match=r"expected one of random, .*, vlsi, got 'middle'"):
        match_layers(torch.zeros(1, 1), strategy="middle")
    with pytest.raises(MatchingError, match="one teacher target each, got 'bottom_3'"):
        match_layers(torch.zeros(1, 3), strategy="bottom_3")
    with pytest.raises(MatchingError, match="floating-point"):
        match_layers(torch.zeros(1, 1, dtype=torch.long))
