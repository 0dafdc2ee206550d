import math

import pytest
import torch

from tokenreduce import FeatureError, PolicyError, dfmr, num_tokens, sigma_per_factor
from tokenreduce.dfmr import choose_indices

NUM_RANDOM_SHAPES = 200
SHAPES = [(2, 8, 8, 5), (3, 5, 7, 3), (1, 1, 1, 4), (2, 3, 10, 1), (1, 24, 24, 2), (2, 2, 2, 3), (1, 11, 4, 2)]


def slow_sigma(image, p, q):
    """Equations 1 to 3, one window, channel and position at a time."""
    height, width, channels = image.shape
    image = image.tolist()
    stds = []
    for top in range(0, height, p):
        for left in range(0, width, q):
            for channel in range(channels):
                values = [
                    image[row][column][channel]
                    for row in range(top, min(top + p, height))
                    for column in range(left, min(left + q, width))
                ]
                mean = math.fsum(values) / len(values)
                stds.append(math.sqrt(math.fsum((value - mean) ** 2 for value in values) / len(values)))
    return math.fsum(stds) / len(stds)


def slow_dfmr(image, tau, factors, mode, normalize):
    """Factor, sigmas and pooled tokens of one image [H, W, D]."""
    height, width, channels = image.shape
    values = image.double().flatten().tolist()
    mean = math.fsum(values) / len(values)
    spread = math.sqrt(math.fsum((value - mean) ** 2 for value in values) / len(values)) if normalize == "image" else 1
    sigmas = []
    for s in factors:
        p, q = (s, s) if mode == "residual" else (math.ceil(height / s), math.ceil(width / s))
        sigmas.append(slow_sigma(image, p, q) / spread if spread > 1e-9 else 0.0)
    if mode == "residual":
        factor = max(s for s, sigma in zip(factors, sigmas, strict=True) if sigma <= tau)
    else:
        factor = next((s for s, sigma in zip(factors, sigmas, strict=True) if sigma > tau), factors[-1])
    pooled = [
        image[top : top + factor, left : left + factor].reshape(-1, channels).mean(dim=0)
        for top in range(0, height, factor)
        for left in range(0, width, factor)
    ]
    return factor, sigmas, torch.stack(pooled)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("mode", ["residual", "literal"])
@pytest.mark.parametrize("normalize", ["image", "none"])
def test_equals_a_slow_loop(shape, mode, normalize):
    generator = torch.Generator().manual_seed(sum(shape))
    features = torch.randn(shape, generator=generator) * torch.linspace(0.3, 2, shape[0])[:, None, None, None] + 1
    factors = (1, 2, 3, 5)
    for tau in (0.05, 0.7, 1.1, 3.0):
        fast = dfmr(features, tau, factors, mode, normalize)
        for row, image in enumerate(features):
            factor, sigmas, pooled = slow_dfmr(image, tau, factors, mode, normalize)
            torch.testing.assert_close(fast.sigmas[row].double(), torch.tensor(sigmas).double(), atol=1e-5, rtol=1e-5)
            assert fast.factors[row] == factor
            torch.testing.assert_close(fast.pooled[row], pooled)
            assert fast.num_tokens[row] == len(pooled) == num_tokens(shape[1], shape[2], factor)


def random_case(seed):
    """Features of an awkward shape, from smooth to noisy, and factors that seldom divide it."""
    generator = torch.Generator().manual_seed(seed)
    height, width, channels, images = (int(torch.randint(1, end, (), generator=generator)) for end in (14, 14, 4, 3))
    noise = torch.randn(images, height, width, channels, generator=generator)
    share = torch.rand(images, 1, 1, 1, generator=generator)
    offset = torch.randn(images, 1, 1, channels, generator=generator) * 3
    factors = (1, *sorted({int(factor) for factor in torch.randint(2, 8, (3,), generator=generator)}))
    return noise * share + offset, factors, float(torch.rand((), generator=generator)) + 0.01


@pytest.mark.parametrize("mode", ["residual", "literal"])
@pytest.mark.parametrize("normalize", ["image", "none"])
def test_equals_a_slow_loop_on_random_shapes(mode, normalize):
    chosen = set()
    for seed in range(NUM_RANDOM_SHAPES):
        features, factors, tau = random_case(seed)
        fast = dfmr(features, tau, factors, mode, normalize)
        for row, image in enumerate(features):
            factor, sigmas, pooled = slow_dfmr(image, tau, factors, mode, normalize)
            torch.testing.assert_close(fast.sigmas[row].double(), torch.tensor(sigmas).double(), atol=2e-6, rtol=1e-5)
            assert fast.factors[row] == factor, seed
            torch.testing.assert_close(fast.pooled[row], pooled)
        chosen.update(fast.factors)
    assert len(chosen) > 2


def test_paper_sizes_are_all_reached_by_residual_only():
    # 24 x 24: 576, 144 and 64 tokens (section 4.1). With the printed window length H/s, sigma(1) >= sigma(2), sigma(3)
    # for these images, so `literal` gives 576 or 64 and never 144.
    generator = torch.Generator().manual_seed(0)
    coarse = torch.randn(3, 12, 12, 4, generator=generator).repeat_interleave(2, 1).repeat_interleave(2, 2)
    smooth = torch.randn(3, 8, 8, 4, generator=generator).repeat_interleave(3, 1).repeat_interleave(3, 2)
    noise = torch.randn(3, 24, 24, 4, generator=generator)
    features = torch.cat([coarse, smooth, noise])
    assert set(dfmr(features, 0.1).num_tokens) == {576, 144, 64}
    for tau in (0.5, 0.9, 0.95, 0.99, 1.0, 1.5):
        assert 144 not in dfmr(features, tau, mode="literal").num_tokens


def test_residual_skips_a_factor_that_throws_too_much_away():
    # Blocks of 3 x 3: pooling by 3 loses nothing, pooling by 2 does. sigma is not monotone in s.
    features = torch.randn(1, 4, 4, 8, generator=torch.Generator().manual_seed(1))
    features = features.repeat_interleave(3, 1).repeat_interleave(3, 2)
    reduction = dfmr(features, 0.01)
    assert reduction.sigmas[0, 1] > 0.1 > reduction.sigmas[0, 2]
    assert reduction.factors == (3,)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_statistics_are_float32_under_any_type(dtype):
    features = torch.randn(2, 6, 6, 16, generator=torch.Generator().manual_seed(2)).to(dtype)
    reduction = dfmr(features, 10.0, (1, 2))
    assert reduction.sigmas.dtype == torch.float32
    torch.testing.assert_close(reduction.sigmas, dfmr(features.float(), 10.0, (1, 2)).sigmas)
    assert all(tokens.dtype == dtype for tokens in reduction.pooled)


@pytest.mark.parametrize("scale", [1e-30, 1e30])
def test_extreme_scales_keep_the_decision(scale):
    features = torch.randn(2, 6, 6, 4, generator=torch.Generator().manual_seed(2))
    torch.testing.assert_close(sigma_per_factor(features * scale), sigma_per_factor(features))
    assert torch.isfinite(sigma_per_factor(features * scale, normalize="none")).all()


@pytest.mark.parametrize("value", [0.0, 0.1, -1e6])
def test_a_constant_image_has_no_sigma(value):
    assert sigma_per_factor(torch.full((1, 7, 7, 3), value)).eq(0).all()


@pytest.mark.parametrize("normalize", ["image", "none"])
def test_an_image_with_the_same_features_everywhere_has_no_sigma(normalize):
    features = torch.linspace(-1, 1, 64).expand(2, 8, 8, 64)
    assert sigma_per_factor(features, normalize=normalize).eq(0).all()


def test_an_offset_does_not_hide_the_spread():
    features = torch.randn(1, 8, 8, 4, generator=torch.Generator().manual_seed(4))
    shifted = sigma_per_factor(features + 1000, normalize="none")
    torch.testing.assert_close(shifted, sigma_per_factor(features, normalize="none"), rtol=1e-3, atol=1e-4)


def test_factor_1_leaves_the_values_alone_and_gradients_flow():
    features = torch.randn(3, 6, 6, 4, generator=torch.Generator().manual_seed(5))
    features[0] = 1.0
    features[1, ::2] = 0.5
    features.requires_grad_()
    assert torch.equal(torch.cat(dfmr(features, 1e-9, (1,)).pooled), features.flatten(0, 2))
    reduction = dfmr(features, 0.5)
    assert reduction.factors[0] == 3
    torch.cat(reduction.pooled).sum().backward()
    assert torch.isfinite(features.grad).all()
    torch.testing.assert_close(features.grad[0], torch.full_like(features.grad[0], 1 / 9))


@pytest.mark.parametrize(
    "features",
    [
        torch.zeros(2, 3, 4),
        torch.zeros(0, 3, 3, 4),
        torch.zeros(1, 3, 0, 4),
        torch.zeros(1, 3, 3, 4, dtype=torch.int64),
        torch.full((1, 3, 3, 4), float("nan")),
        torch.full((1, 3, 3, 4), float("inf")),
        [torch.zeros(3, 4)],
        [torch.zeros(3, 3, 4), torch.full((3, 3, 4), float("nan"))],
    ],
)
def test_bad_features_are_refused(features):
    with pytest.raises(FeatureError, match="expected"):
        dfmr(features, 0.1)


@pytest.mark.parametrize(
    "options",
    [
        {"tau": 0.0},
        {"tau": float("nan")},
        {"tau": 0.1, "mode": "both"},
        {"tau": 0.1, "normalize": "channel"},
        {"tau": 0.1, "factors": (2, 3)},
        {"tau": 0.1, "factors": ()},
        {"tau": 0.1, "factors": (1, 3, 2)},
        {"tau": 0.1, "factors": (1, 2.0)},
    ],
)
def test_bad_options_are_refused(options):
    with pytest.raises(PolicyError, match="expected"):
        dfmr(torch.zeros(1, 4, 4, 2), **options)


def test_tau_is_not_rounded_to_the_type_of_sigma():
    low = torch.tensor(0.1)
    high = torch.nextafter(low, torch.tensor(1.0))
    tau = (low.double() * 0.25 + high.double() * 0.75).item()
    sigmas = torch.tensor([[0.0, low], [0.0, high]])
    assert choose_indices(sigmas, tau, "residual").tolist() == [1, 0]
