import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tokenreduce import CalibrationError, FeatureError, PolicyError, calibrate, calibrate_shares, calibrate_tau, plan
from tokenreduce.calibration import mean_tokens_at
from tokenreduce.sigma import choose_indices, crossings

TOKENS = (64, 16, 9)


def taus_to_try(sigmas):
    """One tau below, between and above all sigmas."""
    edges = sorted({0.0, *sigmas.double().flatten().tolist()})
    return [(low + high) / 2 for low, high in itertools.pairwise(edges)] + [edges[-1] + 1]


def nearest_by_trying(sigmas, tokens, target, mode):
    """Distance to the target of the best tau, found by trying one below, between and above all sigmas."""
    return min(abs(mean_tokens_at(sigmas, tokens, mode, tau) - target) for tau in taus_to_try(sigmas))


def shares_at(sigmas, mode, tau):
    counts = torch.bincount(choose_indices(sigmas, tau, mode), minlength=sigmas.shape[1])
    return (counts.double() / len(sigmas)).tolist()


def distance(left, right):
    """Total variation distance."""
    return sum(abs(a - b) for a, b in zip(left, right, strict=True)) / 2


@st.composite
def sigma_tables(draw):
    """sigma [N, 3] of random images, in half of the cases with many equal values, and its mode."""
    sigmas = torch.rand(
        draw(st.integers(1, 12)), 3, generator=torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    )
    sigmas = (sigmas * 4).round() / 4 if draw(st.booleans()) else sigmas
    mode = draw(st.sampled_from(["residual", "literal"]))
    if mode == "residual":
        sigmas[:, 0] = 0
    return sigmas, mode


@settings(max_examples=60, deadline=None)
@given(sigma_tables(), st.integers(0, 2**31), st.floats(0, 1))
def test_no_threshold_is_nearer_where_sizes_differ(table, seed, share):
    sigmas, mode = table
    tokens = torch.randint(1, 100, sigmas.shape, generator=torch.Generator().manual_seed(seed)).sort(descending=True)
    low, high = tokens.values[:, -1].double().mean(), tokens.values[:, 0].double().mean()
    target = float(low + (high - low) * share)
    tau = calibrate_tau(sigmas, tokens.values, min(target, float(high)), mode)
    got = abs(mean_tokens_at(sigmas, tokens.values, mode, tau) - target)
    assert got == pytest.approx(nearest_by_trying(sigmas, tokens.values, target, mode), abs=1e-9)


@settings(max_examples=60, deadline=None)
@given(sigma_tables(), st.lists(st.integers(0, 10), min_size=3, max_size=3).filter(any))
def test_no_threshold_has_nearer_shares(table, weights):
    sigmas, mode = table
    shares = [weight / sum(weights) for weight in weights]
    tau = calibrate_shares(sigmas, shares, mode)
    got = distance(shares_at(sigmas, mode, tau), shares)
    best = min(distance(shares_at(sigmas, mode, other), shares) for other in taus_to_try(sigmas))
    assert got == pytest.approx(best, abs=1e-9)


@settings(max_examples=60, deadline=None)
@given(sigma_tables(), st.floats(0.01, 1.2))
def test_an_index_is_reached_at_its_crossing(table, tau):
    sigmas, mode = table
    for row, edges in zip(sigmas.tolist(), crossings(sigmas, mode).tolist(), strict=True):
        if mode == "residual":
            index = max(i for i, sigma in enumerate(row) if sigma <= tau)
        else:
            index = next((i for i, sigma in enumerate(row) if sigma > tau), 2)
        assert index == sum(edge <= tau for edge in edges)


def spread_out(num_images, height=8, width=8):
    scale = torch.rand(num_images, 1, 1, 1, generator=torch.Generator().manual_seed(0))
    noise = torch.randn(num_images, height, width, 4, generator=torch.Generator().manual_seed(1))
    return noise * scale + torch.linspace(-1, 1, 4)


def test_shares_of_the_factors():
    features = spread_out(100)
    wanted = {1: 0.5, 2: 0.1, 3: 0.4}
    policy = calibrate(features.split(40), factor_shares=wanted)
    seen = policy.calibration
    images, mean = plan(features, policy)
    assert seen.shares == tuple(sum(image.factor == factor for image in images) / 100 for factor in (1, 2, 3))
    assert distance(seen.shares, wanted.values()) < 0.1
    assert seen.mean_tokens == mean
    assert calibrate([features], factor_shares=(0.5, 0.1, 0.4)) == calibrate([features], factor_shares=wanted)
    # A factor that is not named is not wanted.
    assert calibrate([features], factor_shares={1: 1}).calibration.shares == (1, 0, 0)
    assert calibrate([features], factor_shares={3: 1.0}).calibration.shares == (0, 0, 1)


def test_grids_of_different_sizes():
    batches = [spread_out(20), spread_out(20, 5, 9), list(spread_out(10, 3, 2)) + list(spread_out(10, 12, 12))]
    policy = calibrate(batches, 25)
    images = [image for batch in batches for image in plan(batch, policy)[0]]
    assert policy.calibrated_mean_tokens == pytest.approx(25, abs=2)
    assert policy.calibrated_mean_tokens == pytest.approx(sum(image.num_tokens for image in images) / 60)
    # 64, 45, 6 and 144 tokens at factor 1; 9, 6, 1 and 16 at factor 3.
    with pytest.raises(CalibrationError, match=r"mean_tokens: expected 7.83333 to 61.3333, got 62"):
        calibrate(batches, 62)


def test_the_distribution_that_was_seen():
    features = spread_out(30)
    policy = calibrate([features[:10], features[10:]], 30)
    seen = policy.calibration
    sigmas = torch.tensor([image.sigmas for image in plan(features, policy)[0]], dtype=torch.float64)
    assert (seen.num_images, len(seen.deciles)) == (30, 3)
    for index, row in enumerate(seen.deciles):
        expected = sigmas[:, index].quantile(torch.linspace(0, 1, 11, dtype=torch.float64))
        assert row == pytest.approx(expected.tolist())
    assert seen.deciles[0] == (0.0,) * 11


@settings(max_examples=60, deadline=None)
@given(
    st.integers(1, 12), st.integers(0, 2**31), st.floats(9, 64), st.sampled_from(["residual", "literal"]), st.booleans()
)
def test_no_threshold_is_nearer(num_images, seed, target, mode, coarse):
    sigmas = torch.rand(num_images, 3, generator=torch.Generator().manual_seed(seed))
    sigmas = (sigmas * 4).round() / 4 if coarse else sigmas
    if mode == "residual":
        sigmas[:, 0] = 0
    tau = calibrate_tau(sigmas, TOKENS, target, mode)
    assert tau > 0
    got = abs(mean_tokens_at(sigmas, TOKENS, mode, tau) - target)
    assert got == pytest.approx(nearest_by_trying(sigmas, TOKENS, target, mode), abs=1e-9)


def test_no_image_sits_on_the_threshold():
    sigmas = torch.tensor([[0, 0.2], [0, 0.4], [0, 0.6], [0, 0.8]])
    assert calibrate_tau(sigmas, (64, 16), 40) == pytest.approx(0.5)
    assert calibrate_tau(sigmas, (64, 16), 64) == pytest.approx(0.1)
    assert calibrate_tau(sigmas, (64, 16), 16) > 0.8


@pytest.mark.parametrize("factors", [(1, 2), (1, 2, 3)])
@pytest.mark.parametrize("mode", ["residual", "literal"])
def test_half_of_64_tokens(factors, mode):
    scale = torch.rand(200, 1, 1, 1, generator=torch.Generator().manual_seed(0))
    noise = torch.randn(200, 8, 8, 4, generator=torch.Generator().manual_seed(1))
    features = noise * scale + torch.linspace(-1, 1, 4)
    policy = calibrate(features.split(64), 32, factors=factors, mode=mode)
    assert policy.calibrated_mean_tokens == pytest.approx(32, abs=0.5)
    images, mean = plan(features, policy)
    assert mean == pytest.approx(policy.calibrated_mean_tokens)
    # `literal` cannot reach factor 2 for images whose sigma(1) is the largest.
    assert {image.num_tokens for image in images} <= {64, 16, 9}
    assert len({image.num_tokens for image in images}) > 1


def test_constant_images_only():
    assert calibrate([torch.ones(3, 8, 8, 2)], 9).calibrated_mean_tokens == 9


@pytest.mark.parametrize(
    ("target", "expected"),
    [(8.9, "9 to 64"), (64.1, "9 to 64"), (float("nan"), "expected a finite number > 0, got nan")],
)
def test_a_target_out_of_reach_is_refused(target, expected):
    with pytest.raises(CalibrationError, match=expected):
        calibrate([torch.randn(3, 8, 8, 2)], target)


def test_bad_input_is_refused():
    with pytest.raises(CalibrationError, match="at least one image, got none"):
        calibrate([], 32)
    with pytest.raises(CalibrationError, match="non-empty"):
        calibrate_tau(torch.zeros(0, 3), TOKENS, 32)
    with pytest.raises(CalibrationError, match=r"expected integers \[2\] or \[4, 2\], got int64 \[3\]"):
        calibrate_tau(torch.zeros(4, 2), TOKENS, 32)
    with pytest.raises(CalibrationError, match="NaN"):
        calibrate_tau(torch.full((4, 3), float("nan")), TOKENS, 32)
    with pytest.raises(CalibrationError, match="no ascent"):
        calibrate_tau(torch.zeros(4, 3), (9, 16, 64), 32)
    with pytest.raises(CalibrationError, match="expected exactly one, got both or none"):
        calibrate([torch.zeros(1, 8, 8, 2)])
    with pytest.raises(CalibrationError, match="expected exactly one, got both or none"):
        calibrate([torch.zeros(1, 8, 8, 2)], 9, factor_shares={1: 1})
    with pytest.raises(CalibrationError, match=r"expected factors of \[1, 2, 3\], got \[1, 4\]"):
        calibrate([torch.zeros(1, 8, 8, 2)], factor_shares={1: 0.5, 4: 0.5})
    for shares in ([0.5, 0.4, 0], [1.5, -0.5, 0], [float("nan"), 0, 1]):
        with pytest.raises(CalibrationError, match="shares: expected numbers from 0 that add up to 1"):
            calibrate_shares(torch.zeros(4, 3), shares)
    with pytest.raises(CalibrationError, match="shares: expected 3, one a factor, got 2"):
        calibrate_shares(torch.zeros(4, 3), [0.5, 0.5])
    with pytest.raises(PolicyError):
        calibrate_tau(torch.zeros(4, 3), TOKENS, 32, "both")
    with pytest.raises(FeatureError):
        calibrate([torch.full((1, 8, 8, 2), float("nan"))], 32)
