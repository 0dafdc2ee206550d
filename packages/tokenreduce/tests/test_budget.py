import itertools
import math
import time

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tokenreduce import BudgetError, FeatureError, PolicyError, allocate, plan_budget, sigma_per_factor
from tokenreduce.policy import DEFAULT_FACTORS

TOKENS = [64, 16, 9]


def best_by_trying(sigmas, tokens, limit):
    """Least sum of sigma, and the fewest tokens it takes, over all choices that fit."""
    found = [
        (
            math.fsum(row[i] for row, i in zip(sigmas, choice, strict=True)),
            sum(row[i] for row, i in zip(tokens, choice, strict=True)),
        )
        for choice in itertools.product(range(len(sigmas[0])), repeat=len(sigmas))
    ]
    return min((pair for pair in found if pair[1] <= limit), default=None)


def test_every_small_case_is_optimal():
    # Every pair and every triple of a few rows of sigma, at every limit.
    rows = [(0.0, 0.5, 1.0), (0.0, 0.25, 0.25), (0.0, 0.75, 0.5), (0.0, 0.0, 0.0)]
    tokens = [(6, 2, 1), (5, 3, 1), (4, 2, 2)]
    for num_views in (1, 2, 3):
        for sigmas in itertools.product(rows, repeat=num_views):
            counts = tokens[:num_views]
            for limit in range(sum(row[0] for row in counts) + 2):
                expected = best_by_trying(sigmas, counts, limit)
                if expected is None:
                    with pytest.raises(BudgetError):
                        allocate(sigmas, counts, limit)
                    continue
                chosen = allocate(sigmas, counts, limit)
                assert (
                    best_by_trying(
                        [[row[i]] for row, i in zip(sigmas, chosen, strict=True)],
                        [[row[i]] for row, i in zip(counts, chosen, strict=True)],
                        limit,
                    )
                    == expected
                )


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_no_choice_throws_away_less(data):
    num_views, num_factors = data.draw(st.integers(1, 5)), data.draw(st.integers(1, 4))
    sigma = st.integers(0, 20).map(lambda value: value / 16)
    row = st.lists(sigma, min_size=num_factors, max_size=num_factors)
    # Tokens in any order: with newlines and forced factors they need not fall.
    counts = st.lists(st.integers(0, 40), min_size=num_factors, max_size=num_factors)
    sigmas = data.draw(st.lists(row, min_size=num_views, max_size=num_views))
    tokens = data.draw(st.lists(counts, min_size=num_views, max_size=num_views))
    least = sum(min(row) for row in tokens)
    limit = data.draw(st.integers(least, least + 60))
    chosen = allocate(sigmas, tokens, limit)
    got = (
        sum(row[i] for row, i in zip(sigmas, chosen, strict=True)),
        sum(row[i] for row, i in zip(tokens, chosen, strict=True)),
    )
    assert got == best_by_trying(sigmas, tokens, limit)
    assert chosen == allocate(np.array(sigmas), torch.tensor(tokens), limit)


def test_of_equal_choices_the_finer_one_of_the_last_view():
    # One view may keep its 4 tokens (6 in all), two may (9 in all).
    assert allocate([[0, 1.0]] * 3, [[4, 1]] * 3, 8) == [1, 1, 0]
    assert allocate([[0, 1.0]] * 3, [[4, 1]] * 3, 9) == [1, 0, 0]
    # Nothing is thrown away either way: the fewer tokens.
    assert allocate([[0, 0.0]], [[4, 1]], 100) == [1]


def test_a_generous_limit_and_the_least():
    sigmas = torch.rand(6, 3).cumsum(dim=1)
    sigmas[:, 0] = 0
    assert allocate(sigmas, [TOKENS] * 6, 10**12) == [0] * 6
    assert allocate(sigmas, [TOKENS] * 6, 54) == [2] * 6
    with pytest.raises(BudgetError, match="limit: expected at least 54 visual tokens for 6 views, got 53"):
        allocate(sigmas, [TOKENS] * 6, 53)
    with pytest.raises(BudgetError, match="got -1"):
        allocate(sigmas, [TOKENS] * 6, -1)
    assert allocate([], [], 0) == []
    assert allocate(torch.zeros(0, 3), torch.zeros(0, 3, dtype=torch.int64), 0) == []


@pytest.mark.parametrize(
    ("sigmas", "tokens", "message"),
    [
        ([[0, 1]], [[4, 1], [4, 1]], r"one shape \[N, F\], got \[1, 2\] and \[2, 2\]"),
        ([0, 1], [4, 1], r"one shape \[N, F\], got \[2\]"),
        ([[0, math.nan]], [[4, 1]], "sigmas: expected finite"),
        ([[0, -1.0]], [[4, 1]], "sigmas: expected finite"),
        ([[0, 1]], [[4, -1]], "tokens: expected integers >= 0"),
        ([[0, 1]], [[4.0, 1.0]], "tokens: expected integers >= 0, got float64"),
        ([[0, 1]] * 2, [[2**40, 1], [2**40 + 1, 1]], "expected at most"),
    ],
)
def test_numbers_that_do_not_fit_are_refused(sigmas, tokens, message):
    with pytest.raises(BudgetError, match=message):
        allocate(sigmas, tokens, 2**40)


def test_many_views_are_quick():
    generator = torch.Generator().manual_seed(0)
    sigmas = torch.rand(200, 3, generator=generator).cumsum(dim=1)
    sigmas[:, 0] = 0
    # Tokens without a common divisor, so that every single token is a step.
    sides = torch.randint(20, 29, (200, 2), generator=generator).tolist()
    tokens = [[-(-h // s) * -(-w // s) for s in (1, 2, 3)] for h, w in sides]
    start = time.perf_counter()
    chosen = allocate(sigmas, tokens, 20_000)
    assert time.perf_counter() - start < 2
    total = sum(row[index] for row, index in zip(tokens, chosen, strict=True))
    assert 19_900 < total <= 20_000


@pytest.mark.parametrize("limit", [45, 46, 100, 160, 319, 320, 5000])
def test_plans_stay_inside_the_limit(limit):
    scale = torch.linspace(0.1, 1, 5)[:, None, None, None]
    smooth = torch.randn(5, 2, 2, 4).repeat_interleave(4, 1).repeat_interleave(4, 2)
    features = smooth + torch.randn(5, 8, 8, 4) * scale
    plans = plan_budget(features, limit)
    sigmas = sigma_per_factor(features).tolist()
    assert [list(plan.sigmas) for plan in plans] == sigmas
    assert all(plan.num_tokens == TOKENS[plan.factor - 1] for plan in plans)
    got = sum(plan.sigmas[plan.factor - 1] for plan in plans), sum(plan.num_tokens for plan in plans)
    expected = best_by_trying(sigmas, [TOKENS] * 5, limit)
    assert got == (pytest.approx(expected[0]), expected[1])
    if limit >= 320:
        assert {plan.factor for plan in plans} == {1}


def test_plans_of_different_grids():
    grids = [torch.randn(4, 6, 3), torch.randn(9, 5, 3)]
    assert [plan.num_tokens for plan in plan_budget(grids, 10**6, DEFAULT_FACTORS)] == [24, 45]
    assert [plan.num_tokens for plan in plan_budget(grids, 10)] == [4, 6]
    with pytest.raises(BudgetError, match="expected at least 10 visual tokens for 2 views, got 9"):
        plan_budget(grids, 9)
    with pytest.raises(FeatureError, match="grid 1: expected finite"):
        plan_budget([grids[0], grids[1] * math.nan], 100)
    with pytest.raises(PolicyError):
        plan_budget(grids, 100, (2, 3))
