"""What sigma does not depend on, and features that need a second look."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tokenreduce import FeatureError, PolicyError, dfmr, sigma_per_factor, sigmas_of_grids

MODES = pytest.mark.parametrize("mode", ["residual", "literal"])
NORMALIZATIONS = pytest.mark.parametrize("normalize", ["image", "none"])


def noise(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@MODES
@NORMALIZATIONS
def test_a_batch_gives_what_single_images_give(mode, normalize):
    features = noise(7, 9, 8, 16) * torch.logspace(-25, 25, 7)[:, None, None, None]
    batch = sigma_per_factor(features, mode=mode, normalize=normalize)
    single = torch.cat([sigma_per_factor(image[None], mode=mode, normalize=normalize) for image in features])
    assert torch.equal(batch, single)
    assert torch.equal(batch, sigma_per_factor(features, mode=mode, normalize=normalize))
    pooled, alone = dfmr(features, 0.8).pooled, [dfmr(image[None], 0.8).pooled[0] for image in features]
    assert all(torch.equal(left, right) for left, right in zip(pooled, alone, strict=True))


@settings(max_examples=30, deadline=None)
@given(st.permutations(range(5)), st.permutations(range(6)), st.sampled_from(["residual", "literal"]))
def test_images_and_channels_have_no_order(images, channels, mode):
    features = noise(5, 6, 7, 6) * torch.linspace(0.1, 3, 5)[:, None, None, None] + torch.linspace(-2, 2, 6)
    sigmas = sigma_per_factor(features, mode=mode)
    assert torch.equal(sigma_per_factor(features[list(images)], mode=mode), sigmas[list(images)])
    torch.testing.assert_close(sigma_per_factor(features[..., list(channels)], mode=mode), sigmas)


@MODES
@pytest.mark.parametrize("exponent", [-140, -120, -60, -30, 30, 60, 100, 125])
def test_a_power_of_two_changes_nothing_but_the_scale(mode, exponent):
    features = noise(3, 7, 8, 4) + 0.5
    # The smallest normal float32 is 2^-126: below it digits are lost.
    tolerance = {"rtol": 1e-6, "atol": 0} if exponent > -140 else {"rtol": 1e-2, "atol": 0}
    scaled = features.double().ldexp(torch.tensor(exponent)).float()
    torch.testing.assert_close(sigma_per_factor(scaled, mode=mode), sigma_per_factor(features, mode=mode), **tolerance)
    plain = sigma_per_factor(features, mode=mode, normalize="none").double().ldexp(torch.tensor(exponent)).float()
    torch.testing.assert_close(sigma_per_factor(scaled, mode=mode, normalize="none"), plain, **tolerance)


@MODES
def test_the_largest_float32_values(mode):
    largest = torch.finfo(torch.float32).max
    features = torch.full((2, 6, 6, 2), largest)
    features[1, ::2] *= -1
    sigmas = sigma_per_factor(features, mode=mode)
    assert sigmas[0].eq(0).all()
    torch.testing.assert_close(sigmas[1, 1:], sigma_per_factor(features.sign(), mode=mode)[1, 1:])
    assert sigma_per_factor(features.double() * 1e200, mode=mode)[1, 1] > 0.5


def test_values_that_cancel_are_not_a_constant_image():
    # Window means are exactly 0 and squares vanish in float32.
    board = torch.tensor([[1.0, -1.0], [-1.0, 1.0]]).repeat(4, 4)[None, :, :, None]
    torch.testing.assert_close(sigma_per_factor(board * 1e-30), sigma_per_factor(board))
    assert sigma_per_factor(torch.zeros(1, 8, 8, 1)).eq(0).all()


@pytest.mark.parametrize("offset", [1e2, 1e4, -1e5])
@MODES
def test_an_offset_far_larger_than_the_spread(offset, mode):
    # Exact in float32 with the offset, so that nothing but the statistics can lose digits.
    features = noise(2, 9, 10, 4).mul(16).round().div(16)
    plain = sigma_per_factor(features, mode=mode, normalize="none")
    torch.testing.assert_close(
        sigma_per_factor(features + offset, mode=mode, normalize="none"), plain, rtol=2e-3, atol=0
    )


@MODES
@NORMALIZATIONS
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("factors", [(1,), (1, 2, 3)])
def test_a_value_that_is_not_finite_is_found_with_its_image(mode, normalize, value, dtype, factors):
    features = noise(4, 5, 5, 3).to(dtype)
    # In the corner that is a region of its own; beside an image that only looks suspicious.
    features[2, 4, 4, 1] = value
    features[1] = 0
    with pytest.raises(FeatureError, match="features, image 2: expected finite values, got NaN or infinity"):
        sigma_per_factor(features, factors, mode, normalize)
    with pytest.raises(FeatureError, match="grid 3: expected finite"):
        sigmas_of_grids([noise(3, 3, 3), *features.unbind()[:3]], factors, mode, normalize)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@MODES
def test_statistics_are_those_of_the_values_in_float32(dtype, mode):
    features = (noise(2, 24, 24, 32) + 40).to(dtype)
    assert torch.equal(sigma_per_factor(features, mode=mode), sigma_per_factor(features.float(), mode=mode))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(sigma_per_factor(features, mode=mode), sigma_per_factor(features.float(), mode=mode))


def test_the_features_stay_as_they_are():
    features = noise(2, 6, 6, 4).requires_grad_()
    before = features.detach().clone()
    sigmas = sigma_per_factor(features, (1,), "literal")
    sigma_per_factor(features, (1, 5, 6), "residual", "none")
    assert torch.equal(features, before)
    assert not sigmas.requires_grad


def test_bad_options_name_what_is_wrong():
    features = noise(1, 4, 4, 2)
    with pytest.raises(PolicyError, match="mode: expected one of residual, literal, got 'both'"):
        sigma_per_factor(features, mode="both")
    with pytest.raises(PolicyError, match="normalization: expected one of image, none, got 'rows'"):
        sigmas_of_grids([features[0]], normalize="rows")
    with pytest.raises(FeatureError, match=r"grid 1: expected a non-empty \[H, W, D\], got shape \[2, 0, 2\]"):
        sigmas_of_grids([features[0], torch.zeros(2, 0, 2)])
    with pytest.raises(FeatureError, match=r"grid 0: expected a floating type, got torch.int64"):
        sigmas_of_grids([torch.zeros(2, 2, 2, dtype=torch.int64)])
