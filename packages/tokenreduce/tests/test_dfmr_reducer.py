import itertools

import pytest
import torch

from tokenreduce import (
    BudgetError,
    FeatureError,
    PlaceholderError,
    PolicyError,
    ReductionPolicy,
    dfmr,
    plan_budget,
    sigma_per_factor,
)
from tokenreduce.reducers.dfmr import DfmrReducer
from tokenreduce.reducing import Reducer, VisualGrid

SIZES = [(8, 8), (4, 6), (8, 8), (7, 5), (1, 3), (8, 8)]
ROWS = [0, 0, 1, 1, 1, 2]


@pytest.fixture
def features():
    generator = torch.Generator().manual_seed(0)
    scales = (0.05, 0.5, 1.0, 0.2, 1.0, 0.4)
    return [
        torch.linspace(-1, 1, 4) + torch.randn(h, w, 4, generator=generator) * scale
        for (h, w), scale in zip(SIZES, scales, strict=True)
    ]


@pytest.fixture
def grids(features):
    return [VisualGrid(features=x) for x in features]


def totals(grids, reduced, rows=ROWS):
    """Tokens of each row, counted as `VisualGrid.num_tokens` does."""
    sums = dict.fromkeys(rows, 0)
    for grid, view, row in zip(grids, reduced, rows, strict=True):
        sums[row] += grid.num_tokens(view.factor)
    return sums


@pytest.mark.parametrize("mode", ["residual", "literal"])
def test_equals_dfmr(features, grids, mode):
    reducer: Reducer = DfmrReducer(ReductionPolicy(tau=0.5, mode=mode))
    assert (reducer.needs_attention, reducer.pixel_factor) == (False, 1)
    expected = dfmr(features, 0.5, mode=mode)
    reduced = reducer.reduce(grids, rows=ROWS)
    assert tuple(view.factor for view in reduced) == expected.factors
    for view, tokens, grid in zip(reduced, expected.pooled, grids, strict=True):
        assert torch.equal(view.tokens, tokens)
        assert len(tokens) == view.shape[0] * view.shape[1] == grid.num_tokens(view.factor)
    assert len(set(expected.factors)) > 1
    assert reducer.reduce([], rows=[]) == []


def test_places_are_the_means_of_what_was_pooled():
    for (height, width), factor in itertools.product(SIZES, (1, 2, 3, 5)):
        grid = VisualGrid(features=torch.randn(height, width, 4), factor=factor)
        (view,) = DfmrReducer(ReductionPolicy(tau=0.1)).reduce([grid], rows=[0])
        assert view.factor == factor
        assert view.shape == (-(-height // factor), -(-width // factor))
        expected = [
            (
                sum(range(top, min(top + factor, height))) / len(range(top, min(top + factor, height))),
                sum(range(left, min(left + factor, width))) / len(range(left, min(left + factor, width))),
            )
            for top in range(0, height, factor)
            for left in range(0, width, factor)
        ]
        assert view.places.dtype == torch.float32
        torch.testing.assert_close(view.places, torch.tensor(expected))


def test_a_limit_that_is_kept_already_changes_nothing(grids):
    reducer = DfmrReducer(ReductionPolicy(tau=0.5))
    free = reducer.reduce(grids, rows=ROWS)
    limit = max(totals(grids, free).values())
    again = reducer.reduce(grids, rows=ROWS, max_tokens=limit)
    assert [view.factor for view in again] == [view.factor for view in free]


@pytest.mark.parametrize("mode", ["residual", "literal"])
@pytest.mark.parametrize("limit", [16, 30, 64, 90, 127])
def test_a_row_over_its_limit_throws_away_least(features, grids, mode, limit):
    reducer = DfmrReducer(ReductionPolicy(tau=1e-3, mode=mode))
    reduced = reducer.reduce(grids, rows=ROWS, max_tokens=limit)
    free = totals(grids, reducer.reduce(grids, rows=ROWS))
    assert all(count <= min(limit, free[row]) for row, count in totals(grids, reduced).items())
    for row in set(ROWS):
        views = [view for view, other in enumerate(ROWS) if other == row]
        if free[row] > limit:
            expected = [plan.factor for plan in plan_budget([features[view] for view in views], limit)]
            assert [reduced[view].factor for view in views] == expected


def test_a_limit_counts_the_newlines_of_rows(features):
    grids = [VisualGrid(features=features[0], num_row_tokens=1), VisualGrid(features=features[2], num_row_tokens=1)]
    reducer = DfmrReducer(ReductionPolicy(tau=1e-3))
    # 8 x 9, 4 x 5, 3 x 4 with newlines.
    for limit, sums in ((143, (72 + 20, 72 + 12)), (91, (72 + 12,)), (24, (12 + 12,))):
        reduced = reducer.reduce(grids, rows=[0, 0], max_tokens=limit)
        assert totals(grids, reduced, [0, 0])[0] in sums
        # The newlines are the model's own: they are counted, not made.
        assert sum(len(view.tokens) for view in reduced) < totals(grids, reduced, [0, 0])[0]
    with pytest.raises(BudgetError, match="row 0: limit: expected at least 24 visual tokens for 2 views, got 23"):
        reducer.reduce(grids, rows=[0, 0], max_tokens=23)


def test_a_wanted_factor_is_kept_within_a_limit(features):
    grids = [VisualGrid(features=features[0], factor=1), VisualGrid(features=features[2])]
    reducer = DfmrReducer(ReductionPolicy(tau=1e-3))
    assert [view.factor for view in reducer.reduce(grids, rows=[5, 5])] == [1, 1]
    assert [view.factor for view in reducer.reduce(grids, rows=[5, 5], max_tokens=80)] == [1, 2]
    assert [view.factor for view in reducer.reduce(grids, rows=[5, 6], max_tokens=64)] == [1, 1]
    with pytest.raises(BudgetError, match="row 5: limit: expected at least 73 visual tokens for 2 views, got 72"):
        reducer.reduce(grids, rows=[5, 5], max_tokens=72)
    # Not one of the policy's.
    seventh = [VisualGrid(features=features[0], factor=7), grids[1]]
    assert [view.factor for view in reducer.reduce(seventh, rows=[0, 0], max_tokens=20)] == [7, 2]


def test_gradients_flow(features):
    inputs = [x.bfloat16().requires_grad_() for x in features]
    grids = [VisualGrid(features=x) for x in inputs]
    reduced = DfmrReducer(ReductionPolicy(tau=0.3)).reduce(grids, rows=ROWS, max_tokens=70)
    assert all(view.tokens.dtype == torch.bfloat16 for view in reduced)
    torch.cat([view.tokens for view in reduced]).float().sum().backward()
    assert all((x.grad > 0).all() for x in inputs)


def test_the_budget_goes_where_the_content_is():
    generator = torch.Generator().manual_seed(1)
    smooth = torch.randn(1, 1, 4, generator=generator).expand(8, 8, 4) + torch.linspace(0, 1, 8)[:, None, None]
    busy = torch.randn(8, 8, 4, generator=generator)
    grids = [VisualGrid(features=x) for x in (smooth, busy)]
    sigmas = [float(sigma_per_factor(x[None])[0, 1]) for x in (smooth, busy)]
    assert sigmas[0] < sigmas[1]
    reduced = DfmrReducer(ReductionPolicy(tau=1e-3)).reduce(grids, rows=[0, 0], max_tokens=80)
    assert [view.factor for view in reduced] == [2, 1]


def test_bad_input_is_refused(features, grids):
    reducer = DfmrReducer(ReductionPolicy(tau=0.5))
    with pytest.raises(PlaceholderError, match="rows: expected one for each of 6 views, got 2"):
        reducer.reduce(grids, rows=[0, 0])
    for factor in (0, -1, 1.5, True):
        with pytest.raises(PolicyError, match="view 1, factor: expected an integer of at least 1, got"):
            reducer.reduce([grids[0], VisualGrid(features=features[1], factor=factor)], rows=[0, 0])
    broken = VisualGrid(features=features[1] * float("nan"), factor=1)
    with pytest.raises(FeatureError, match="grid 1: expected finite"):
        reducer.reduce([grids[0], broken], rows=[0, 0])
