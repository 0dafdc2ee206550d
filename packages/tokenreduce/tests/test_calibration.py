import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tokenreduce import CalibrationError, FeatureError, PolicyError, calibrate, calibrate_tau, plan
from tokenreduce.calibration import mean_tokens_at

TOKENS = (64, 16, 9)


def nearest_by_trying(sigmas, tokens, target, mode):
    """Distance to the target of the best tau, found by trying one below, between and above all sigmas."""
    edges = sorted({0.0, *sigmas.double().flatten().tolist()})
    taus = [(low + high) / 2 for low, high in itertools.pairwise(edges)] + [edges[-1] + 1]
    return min(abs(mean_tokens_at(sigmas, tokens, mode, tau) - target) for tau in taus)


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


@pytest.mark.parametrize("target", [8.9, 64.1, float("nan")])
def test_a_target_out_of_reach_is_refused(target):
    with pytest.raises(CalibrationError, match="9 to 64"):
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
    with pytest.raises(PolicyError):
        calibrate_tau(torch.zeros(4, 3), TOKENS, 32, "both")
    with pytest.raises(FeatureError):
        calibrate([torch.full((1, 8, 8, 2), float("nan"))], 32)
