import itertools

import pytest
import torch

from tokenreduce import PolicyError
from tokenreduce.reducers.drawing import Drawing, keyed
from tokenreduce.reducers.fixed_pooling import FixedPooling
from tokenreduce.reducers.image_downsampling import ImageDownsampling
from tokenreduce.reducers.random_pooling import RandomPooling


def slowly_pooled(features, factor):
    """Tokens and places, window by window."""
    height, width = features.shape[:2]
    tokens, places = [], []
    for top, left in itertools.product(range(0, height, factor), range(0, width, factor)):
        inside = [
            (row, column)
            for row in range(top, min(top + factor, height))
            for column in range(left, min(left + factor, width))
        ]
        tokens.append(sum(features[row, column].double() for row, column in inside) / len(inside))
        places.append(torch.tensor(inside, dtype=torch.float64).mean(dim=0))
    return torch.stack(tokens).float(), torch.stack(places).float()


@pytest.mark.parametrize("factor", [1, 2, 3, 5, 20])
@pytest.mark.parametrize("shape", [(1, 1), (1, 8), (5, 7), (6, 6), (9, 4)])
def test_fixed_pooling_is_the_mean_of_windows(factor, shape, make_view, reduce):
    view = make_view(*shape)
    (left,) = reduce(FixedPooling(factor=factor), [view])
    tokens, places = slowly_pooled(view.features, factor)
    torch.testing.assert_close(left.tokens, tokens)
    torch.testing.assert_close(left.places, places)
    assert left.factor == factor


def test_a_wanted_factor_wins(make_view, reduce):
    views = [make_view(6, 6), make_view(6, 6, factor=3), make_view(6, 6, factor=1)]
    assert [left.factor for left in reduce(FixedPooling(factor=2), views)] == [2, 3, 1]
    random = RandomPooling(seed=3)
    assert [left.factor for left in reduce(random, views)] == [random.draw(0), 3, 1]
    for bad in (0, 2.0, True):
        with pytest.raises(PolicyError, match="factor of view 0: expected an integer >= 1"):
            reduce(FixedPooling(factor=2), [make_view(6, 6, factor=bad)])


def test_random_pooling_pools_by_what_it_draws(make_view, reduce):
    reducer = RandomPooling(factors=(1, 2, 4), seed=11, step=5)
    views = [make_view(5, 7, seed=seed) for seed in range(12)]
    reduced = reduce(reducer, views)
    assert [left.factor for left in reduced] == [reducer.draw(view) for view in range(12)]
    assert {left.factor for left in reduced} == {1, 2, 4}
    for view, left in zip(views, reduced, strict=True):
        torch.testing.assert_close(left.tokens, slowly_pooled(view.features, left.factor)[0])


def test_draws_are_uniform_and_independent_along_every_part_of_the_key():
    base = RandomPooling(seed=0)
    along = {
        "view": [base.draw(view) for view in range(3000)],
        "step": [base.keyed(step=step).draw(0) for step in range(3000)],
        "stream": [base.keyed(step=0, stream=stream).draw(0) for stream in range(3000)],
        "seed": [RandomPooling(seed=seed).draw(0) for seed in range(3000)],
    }
    for name, draws in along.items():
        for factor in (1, 2, 3):
            # 1000 expected, standard deviation 26.
            assert abs(draws.count(factor) - 1000) < 104, name
        pairs = list(itertools.pairwise(draws))
        for pair in itertools.product((1, 2, 3), repeat=2):
            assert abs(pairs.count(pair) - 333) < 75, name
    assert len({tuple(draws) for draws in along.values()}) == 4


def test_draws_do_not_change_between_versions():
    assert [RandomPooling(seed=1, step=2, stream=3).draw(view) for view in range(8)] == [3, 1, 2, 1, 3, 1, 3, 1]


def test_keys_move_only_what_draws():
    fixed = FixedPooling(factor=2)
    assert keyed(fixed, step=3) is fixed
    assert not isinstance(fixed, Drawing)
    assert keyed(RandomPooling(seed=5), step=3, stream=2) == RandomPooling(seed=5, step=3, stream=2)


def test_downsampling_asks_for_small_images_and_keeps_their_tokens(make_view, reduce):
    reducer = ImageDownsampling(factor=3)
    assert reducer.pixel_factor == 3
    view = make_view(3, 2)
    (left,) = reduce(reducer, [view])
    assert torch.equal(left.tokens, view.features.flatten(0, 1))
    assert left.places.tolist() == [[0, 0], [0, 1], [1, 0], [1, 1], [2, 0], [2, 1]]


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (lambda: FixedPooling(factor=0), "factor: expected an integer >= 1, got 0"),
        (lambda: FixedPooling(factor=1.5), "factor: .* got 1.5"),
        (lambda: ImageDownsampling(factor=-1), "factor: .* got -1"),
        (lambda: RandomPooling(factors=()), "factors: expected ascending"),
        (lambda: RandomPooling(factors=(2, 3)), "factors: expected ascending integers from 1"),
        (lambda: RandomPooling(seed=-1), "seed: expected an integer >= 0, got -1"),
        (lambda: RandomPooling(step=0.5), "step: .* got 0.5"),
        (lambda: RandomPooling(stream="a"), "stream: .* got 'a'"),
    ],
)
def test_bad_parameters(make, match):
    with pytest.raises(PolicyError, match=match):
        make()
