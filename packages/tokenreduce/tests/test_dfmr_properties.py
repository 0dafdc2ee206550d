import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tokenreduce import dfmr, num_tokens, plan, sigma_per_factor
from tokenreduce.policy import ReductionPolicy

FACTORS = st.sets(st.integers(2, 6), max_size=3).map(lambda more: (1, *sorted(more)))
MODES = st.sampled_from(["residual", "literal"])
TAUS = st.floats(1e-6, 3.0)


@st.composite
def feature_batches(draw):
    shape = draw(st.tuples(st.integers(1, 3), st.integers(1, 9), st.integers(1, 9), st.integers(1, 3)))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    return torch.randn(shape, generator=generator) * draw(st.sampled_from([0.01, 1.0, 50.0]))


@settings(max_examples=40, deadline=None)
@given(st.floats(-1e3, 1e3), st.integers(1, 9), st.integers(1, 9), FACTORS, MODES, TAUS)
def test_a_constant_image_gets_the_largest_factor(value, height, width, factors, mode, tau):
    features = torch.full((1, height, width, 3), value)
    assert dfmr(features, tau, factors, mode).factors == (factors[-1],)


@settings(max_examples=60, deadline=None)
@given(feature_batches(), FACTORS, MODES, TAUS, TAUS)
def test_the_factor_grows_with_tau(features, factors, mode, first, second):
    low, high = sorted((first, second))
    pairs = zip(dfmr(features, low, factors, mode).factors, dfmr(features, high, factors, mode).factors, strict=True)
    assert all(small <= large for small, large in pairs)


@settings(max_examples=60, deadline=None)
@given(feature_batches(), FACTORS, MODES, TAUS)
def test_tokens_add_up(features, factors, mode, tau):
    _, height, width, channels = features.shape
    reduction = dfmr(features, tau, factors, mode)
    assert reduction.num_tokens == [num_tokens(height, width, factor) for factor in reduction.factors]
    assert all(tokens.shape[1] == channels for tokens in reduction.pooled)
    images, mean = plan(features, ReductionPolicy(tau=tau, mode=mode, factors=factors))
    assert [image.factor for image in images] == list(reduction.factors)
    assert mean == sum(reduction.num_tokens) / len(features)


@settings(max_examples=30, deadline=None)
@given(feature_batches(), FACTORS, TAUS)
def test_every_pooled_token_stays_in_the_range_of_its_image(features, factors, tau):
    for image, tokens in zip(features, dfmr(features, tau, factors).pooled, strict=True):
        slack = 1e-5 * float(image.abs().max())
        assert float(tokens.min()) >= float(image.min()) - slack
        assert float(tokens.max()) <= float(image.max()) + slack


@settings(max_examples=40, deadline=None)
@given(feature_batches(), FACTORS, st.sampled_from(["image", "none"]))
def test_sigma_is_never_negative_and_residual_starts_at_0(features, factors, normalize):
    residual, literal = (sigma_per_factor(features, factors, mode, normalize) for mode in ("residual", "literal"))
    assert residual[:, 0].eq(0).all()
    assert residual.ge(0).all()
    assert literal.ge(0).all()


@settings(max_examples=30, deadline=None)
@given(feature_batches(), FACTORS, MODES, TAUS)
def test_grids_decide_as_their_batch(features, factors, mode, tau):
    batch, grids = dfmr(features, tau, factors, mode), dfmr(list(features), tau, factors, mode)
    assert batch.factors == grids.factors
    assert torch.equal(batch.sigmas, grids.sigmas)
    assert all(torch.equal(left, right) for left, right in zip(batch.pooled, grids.pooled, strict=True))
