"""What holds for every reducer."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tokenreduce import FeatureError, PolicyError, ReductionPolicy
from tokenreduce.reducers.attention_selection import AttentionSelection
from tokenreduce.reducers.counted import CountsOf
from tokenreduce.reducers.dfmr import DfmrReducer
from tokenreduce.reducers.fixed_pooling import FixedPooling
from tokenreduce.reducers.image_downsampling import ImageDownsampling
from tokenreduce.reducers.random_drop import RandomDrop
from tokenreduce.reducers.random_pooling import RandomPooling
from tokenreduce.reducers.token_merging import TokenMerging
from tokenreduce.reducing import Reducer, VisualGrid

DFMR = DfmrReducer(ReductionPolicy(tau=0.8))
COUNTED = [
    RandomDrop(num_tokens=7, seed=1),
    RandomDrop(share=0.3),
    AttentionSelection(num_dominant=5, num_contextual=2),
    AttentionSelection(num_dominant=7, num_contextual=0),
    TokenMerging(num_tokens=7),
    TokenMerging(share=0.3, share_per_round=0.5),
]
POOLING = [FixedPooling(factor=1), FixedPooling(factor=3), RandomPooling(seed=4)]
WITHOUT_BUDGET = [*COUNTED, *POOLING, ImageDownsampling(factor=2)]
EVERY = [*WITHOUT_BUDGET, *(CountsOf(decider=DFMR, rival=rival) for rival in COUNTED[1:5:2])]
SHAPES = [(1, 1), (1, 7), (7, 1), (2, 3), (5, 7), (8, 8), (13, 4), (2, 3)]


@pytest.fixture(params=EVERY, ids=repr)
def reducer(request):
    return request.param


def raster(places):
    return sorted(places.tolist()) == places.tolist()


@pytest.fixture
def views(make_view):
    return [make_view(*shape, seed=seed) for seed, shape in enumerate(SHAPES)]


def test_views_of_all_sizes_in_one_call(reducer: Reducer, views, reduce):
    reduced = reduce(reducer, views)
    assert len(reduced) == len(views)
    for view, left in zip(views, reduced, strict=True):
        height, width, channels = view.features.shape
        assert left.tokens.shape[1:] == (channels,)
        assert 1 <= len(left.tokens) <= height * width
        assert left.places.shape == (len(left.tokens), 2)
        assert left.places.dtype == torch.float32
        assert raster(left.places)
        assert (left.places >= 0).all()
        assert (left.places <= torch.tensor([height - 1, width - 1])).all()
        assert (left.shape is None) == (left.factor is None)
        if left.shape is not None:
            assert len(left.tokens) == left.shape[0] * left.shape[1]
            assert left.shape == (-(-height // left.factor), -(-width // left.factor))


def test_the_same_call_gives_the_same_and_leaves_global_draws_alone(reducer, views, reduce):
    state = torch.get_rng_state()
    first, second = reduce(reducer, views), reduce(reducer, views)
    assert torch.equal(torch.get_rng_state(), state)
    for one, other in zip(first, second, strict=True):
        assert torch.equal(one.tokens, other.tokens)
        assert torch.equal(one.places, other.places)


def test_gradients_reach_every_kept_position_alone(reducer, make_view, reduce):
    features = make_view(6, 7).features.requires_grad_()
    view = VisualGrid(features=features, attention=make_view(6, 7).attention)
    (left,) = reduce(reducer, [view])
    left.tokens.sum().backward()
    # Weights of a mean add up to 1: so do all gradients of one channel of one token.
    torch.testing.assert_close(features.grad.sum(dim=(0, 1)), torch.full((6,), float(len(left.tokens))))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_types_stay_and_means_are_rounded_once(reducer, make_view, reduce, dtype):
    view = make_view(6, 7, dtype=dtype)
    wide = VisualGrid(features=view.features.float(), attention=view.attention)
    (left,), (exact,) = reduce(reducer, [view]), reduce(reducer, [wide])
    assert left.tokens.dtype == dtype
    assert torch.equal(left.places, exact.places)
    torch.testing.assert_close(left.tokens.float(), exact.tokens.to(dtype).float())


def test_no_views_are_no_tokens(reducer, reduce):
    assert reduce(reducer, []) == []


def test_a_constant_image_stays_constant(reducer, reduce):
    view = VisualGrid(features=torch.full((6, 6, 3), 2.5), attention=torch.full((6, 6), 0.1))
    (left,) = reduce(reducer, [view])
    assert torch.equal(left.tokens, torch.full_like(left.tokens, 2.5))


@pytest.mark.parametrize(
    ("features", "match"),
    [
        (torch.full((2, 2, 3), torch.nan), "finite"),
        (torch.full((2, 2, 3), torch.inf), "finite"),
        (torch.zeros(2, 0, 3), "non-empty"),
        (torch.zeros(4, 3), "H, W, D"),
        (torch.zeros(2, 2, 3, dtype=torch.int64), "floating"),
    ],
)
@pytest.mark.parametrize("reducer", WITHOUT_BUDGET, ids=repr)
def test_bad_features_are_refused_by_view(reducer, features, match, make_view, reduce):
    good = make_view(2, 2, 3)
    with pytest.raises(FeatureError, match=match) as caught:
        reduce(reducer, [good, VisualGrid(features=features, attention=good.attention)])
    assert "view 1" in str(caught.value)


@pytest.mark.parametrize("reducer", WITHOUT_BUDGET, ids=repr)
def test_a_limit_is_refused(reducer, make_view, reduce):
    with pytest.raises(PolicyError, match=f"max_tokens: expected none for a {type(reducer).__name__}.* got 40"):
        reduce(reducer, [make_view(2, 2)], max_tokens=40)


@pytest.mark.parametrize("reducer", [*COUNTED, ImageDownsampling(factor=2)], ids=repr)
def test_a_wanted_factor_is_refused(reducer, make_view, reduce):
    with pytest.raises(PolicyError, match=r"factor of view 1: expected none .* got 2"):
        reduce(reducer, [make_view(2, 2), make_view(4, 4, factor=2)])


@pytest.mark.parametrize("rival", COUNTED, ids=repr)
@settings(max_examples=25, deadline=None)
@given(height=st.integers(1, 7), width=st.integers(1, 7), count=st.integers(1, 60), seed=st.integers(0, 99))
def test_counts_are_kept_exactly(rival, height, width, count, seed):
    generator = torch.Generator().manual_seed(seed)
    # Few different values: ties everywhere.
    features = torch.randint(3, (height, width, 2), generator=generator).float()
    view = VisualGrid(features=features, attention=torch.randint(3, (height, width), generator=generator).float())
    (left,) = rival.reduce_to([view], [count])
    assert len(left.tokens) == min(count, height * width)
    assert raster(left.places)
    if count >= height * width:
        assert torch.equal(left.tokens, features.flatten(0, 1))
        assert left.shape == (height, width)
        assert left.factor == 1


@pytest.mark.parametrize("rival", COUNTED, ids=repr)
def test_bad_counts_are_refused(rival, make_view):
    with pytest.raises(PolicyError, match="counts: expected 1, one for each view, got 2"):
        rival.reduce_to([make_view(2, 2)], [1, 2])
    with pytest.raises(PolicyError, match="count of view 0: expected an integer >= 1, got 0"):
        rival.reduce_to([make_view(2, 2)], [0])
    with pytest.raises(PolicyError, match="factor of view 0"):
        rival.reduce_to([make_view(2, 2, factor=2)], [1])
