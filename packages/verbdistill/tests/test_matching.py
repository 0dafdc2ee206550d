import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from verbdistill import MatchingError, match_layers
from verbdistill.matching.matching import candidate_range, draw_probabilities


def reference_probabilities(values, scale):
    temperature = scale / (max(values) - min(values) + 1e-6)
    weights = [math.exp(-value / temperature) for value in values]
    return [weight / sum(weights) for weight in weights]


@given(st.integers(1, 6), st.integers(0, 6), st.integers(0, 2**30), st.floats(0.1, 10))
@settings(deadline=None, max_examples=80)
def test_order_is_kept_within_the_ranges(num_student, more, seed, scale):
    generator = torch.Generator().manual_seed(seed)
    num_teacher = num_student + more
    kld = torch.rand(num_student, num_teacher, generator=generator) * 10
    matches = match_layers(kld, scale=scale, generator=generator)
    assert len(matches) == num_student
    previous = None
    for target, drawn in enumerate(matches):
        candidates = candidate_range(target, previous, num_student, num_teacher)
        assert len(candidates) > 0
        assert drawn in candidates
        previous = drawn
    assert matches == sorted(set(matches))


def test_ranges_as_the_notes_read_them():
    # t_s = 7, t_l = 20: the first may take 0..13, the last at most 19.
    assert candidate_range(0, None, 7, 20) == range(14)
    assert candidate_range(1, 4, 7, 20) == range(5, 15)
    assert candidate_range(6, 18, 7, 20) == range(19, 20)
    assert match_layers(torch.rand(3, 3)) == [0, 1, 2]


@pytest.mark.parametrize("scale", [0.5, 2.0])
def test_probabilities_match_the_reference(scale):
    values = [0.3, 2.5, 0.9, 1.1]
    got = draw_probabilities(torch.tensor(values, dtype=torch.float64), scale)
    torch.testing.assert_close(got, torch.tensor(reference_probabilities(values, scale), dtype=torch.float64))
    # All candidates alike: every one is as likely.
    torch.testing.assert_close(draw_probabilities(torch.ones(4), scale), torch.full((4,), 0.25))


def test_frequencies_match_the_softmax_over_the_candidates_only():
    # The first row's last value is out of its range, and would change the temperature if it were not.
    kld = torch.tensor([[0.2, 1.0, 0.6, 50.0], [9.0, 0.4, 1.5, 0.1]], dtype=torch.float64)
    expected = {}
    first = reference_probabilities(kld[0, :3].tolist(), 2.0)
    for i, p in enumerate(first):
        for j, q in enumerate(reference_probabilities(kld[1, i + 1 :].tolist(), 2.0)):
            expected[i, i + 1 + j] = p * q
    generator = torch.Generator().manual_seed(0)
    draws = 4000
    counts = dict.fromkeys(expected, 0)
    for _ in range(draws):
        counts[tuple(match_layers(kld, generator=generator))] += 1
    chi_square = sum((counts[key] - draws * p) ** 2 / (draws * p) for key, p in expected.items())
    # 6 outcomes: 5 degrees of freedom, 15.1 at 1%.
    assert len(expected) == 6
    assert chi_square < 15.1


def test_draws_are_seeded_and_not_differentiated():
    kld = torch.rand(5, 12, requires_grad=True)
    draws = [match_layers(kld, generator=torch.Generator().manual_seed(seed)) for seed in (1, 1, 2, 3, 4)]
    assert draws[0] == draws[1]
    assert len({tuple(draw) for draw in draws}) > 1
    state = torch.random.get_rng_state()
    match_layers(kld, generator=torch.Generator().manual_seed(0))
    assert torch.equal(state, torch.random.get_rng_state())


@pytest.mark.parametrize("shape", [(3,), (0, 2), (3, 2), (1, 2, 3), (0, 0)])
def test_bad_shapes_are_refused(shape):
    with pytest.raises(MatchingError, match="kld: expected"):
        match_layers(torch.zeros(shape))


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
    with pytest.raises(MatchingError, match="expected one of vlsi, got 'uniform'"):
        match_layers(torch.zeros(1, 1), strategy="uniform")
    with pytest.raises(MatchingError, match="floating-point"):
        match_layers(torch.zeros(1, 1, dtype=torch.long))
