from collections import Counter
from math import comb

import pytest
import torch

from tokenreduce import PolicyError
from tokenreduce.reducers.random_drop import RandomDrop


def test_kept_tokens_are_the_features_at_their_places(make_view, reduce):
    views = [make_view(5, 7, seed=seed) for seed in range(3)]
    for view, left in zip(views, reduce(RandomDrop(num_tokens=9), views), strict=True):
        rows, columns = left.places.long().unbind(dim=1)
        assert torch.equal(left.tokens, view.features[rows, columns])
        assert len(set(map(tuple, left.places.tolist()))) == 9
        assert left.shape is None


def test_every_subset_is_equally_likely(make_view, reduce):
    views = [make_view(2, 3)] * 4000
    seen = Counter(str(left.places.tolist()) for left in reduce(RandomDrop(num_tokens=3, seed=2), views))
    assert len(seen) == comb(6, 3)
    # 200 expected, standard deviation 14.
    assert all(abs(count - 200) < 56 for count in seen.values())


def test_steps_and_streams_draw_anew(make_view, reduce):
    def places(reducer):
        return reduce(reducer, [make_view(6, 6)])[0].places.tolist()

    reducer = RandomDrop(num_tokens=12, seed=3)
    drawn = [places(reducer), *(places(reducer.keyed(step=1, stream=stream)) for stream in range(2))]
    assert len({str(each) for each in drawn}) == 3
    assert places(reducer.keyed(step=1)) == drawn[1]


@pytest.mark.parametrize(("share", "counts"), [(1.0, [1, 35]), (0.5, [1, 18]), (0.1, [1, 4]), (1e-9, [1, 1])])
def test_a_share_is_of_each_view(share, counts, make_view, reduce):
    views = [make_view(1, 1), make_view(5, 7)]
    assert [len(left.tokens) for left in reduce(RandomDrop(share=share), views)] == counts


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"num_tokens": 0}, "num_tokens: expected an integer >= 1, got 0"),
        ({"num_tokens": 3.0}, "num_tokens: .* got 3.0"),
        ({"num_tokens": 3, "share": 0.5}, "share: expected none beside num_tokens 3, got 0.5"),
        ({"share": 0.0}, "share: expected a number above 0 and up to 1, got 0.0"),
        ({"share": 1.1}, "share: .* got 1.1"),
        ({"share": float("nan")}, "share: .* got nan"),
        ({"seed": True}, "seed: expected an integer >= 0, got True"),
    ],
)
def test_bad_parameters(options, match):
    with pytest.raises(PolicyError, match=match):
        RandomDrop(**options)
