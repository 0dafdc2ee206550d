"""AWQ and MBQ against plain loops in float64."""

from collections.abc import Callable

import numpy as np
import pytest
import torch

from quantpack import Scheme, SchemeError, dequantize
from quantpack.calibration.sites import Site
from quantpack.methods.awq import Awq
from quantpack.methods.mbq import Mbq
from quantpack.methods.nearest import Nearest

SlowNearest = Callable[[np.ndarray, Scheme], np.ndarray]
SCHEMES = [
    Scheme(granularity="group", group_size=8),
    Scheme(granularity="group", group_size=7, bits=3, symmetric=True),
    Scheme(granularity="channel", bits=3),
    Scheme(granularity="tensor", symmetric=True),
]


def slow_factor(statistic: np.ndarray, ratio: float) -> np.ndarray:
    powers = np.array([max(value / statistic.max(), 1e-4) ** ratio for value in statistic.astype(np.float64)])
    return (powers / np.sqrt(powers.max() * powers.min())).astype(np.float32)


def slow_search(site: Site, slow_nearest: SlowNearest, token_weights: np.ndarray, power: int) -> np.ndarray:
    samples = site.activations.samples.double().numpy()
    losses, factors = [], []
    for step in range(20):
        factor = slow_factor(site.activations.mean_abs.numpy(), step / 20)
        loss = 0.0
        for name, weight in site.weights.items():
            rounded = slow_nearest(weight.numpy() * factor, site.schemes[name]) / factor
            for token, sample in enumerate(samples):
                for row in range(len(rounded)):
                    error = abs(float(sample @ (rounded[row] - weight[row].double().numpy())))
                    loss += token_weights[token] * error**power
        losses.append(loss)
        factors.append(factor)
    return factors[int(np.argmin(losses))]


def slow_clip(weight: np.ndarray, samples: np.ndarray, scheme: Scheme, slow_nearest: SlowNearest) -> np.ndarray:
    """Cuts each group of a row, or the whole matrix, on its own."""
    size = scheme.group_size or weight.shape[1]
    rows = [slice(None)] if scheme.granularity == "tensor" else [slice(row, row + 1) for row in range(len(weight))]
    cut = weight.copy()
    for row in rows:
        for begin in range(0, weight.shape[1], size):
            group = weight[row, begin : begin + size]
            best = np.inf
            for step in range(10):
                bound = np.abs(group).max() * np.float32(1 - step * 0.05)
                candidate = np.clip(group, -bound, bound)
                difference = slow_nearest(candidate, scheme) - group
                error = np.square(samples[:, begin : begin + size] @ difference.T).mean(0).sum()
                if error < best:
                    best = error
                    cut[row, begin : begin + size] = candidate
    return cut


@pytest.mark.parametrize("scheme", SCHEMES, ids=lambda s: f"{s.granularity}-{s.bits}")
@pytest.mark.parametrize("seed", [0, 1])
def test_awq_is_the_reference(
    scheme: Scheme, seed: int, make_site: Callable[..., Site], slow_nearest: SlowNearest
) -> None:
    site = make_site(scheme, num_outputs=(5, 7), num_inputs=23, seed=seed, dead=(4,))
    result = Awq().quantize_site(site)
    factor = slow_search(site, slow_nearest, np.ones(40), 2)
    assert result.factor is not None
    np.testing.assert_allclose(result.factor.numpy(), factor, rtol=1e-5)
    factor = result.factor.numpy()
    samples = site.activations.samples.numpy() / factor
    for name, weight in site.weights.items():
        cut = slow_clip(weight.numpy() * factor, samples.astype(np.float64), scheme, slow_nearest)
        restored = dequantize(result.quantized[name]).numpy()
        np.testing.assert_allclose(restored, slow_nearest(cut, scheme), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("scheme", SCHEMES, ids=lambda s: f"{s.granularity}-{s.bits}")
@pytest.mark.parametrize("visual_weight", [0.0, 0.1, 8.0])
def test_mbq_is_the_reference(
    scheme: Scheme, visual_weight: float, make_site: Callable[..., Site], slow_nearest: SlowNearest
) -> None:
    site = make_site(scheme, num_outputs=(5, 7), num_inputs=23, visual_weight=visual_weight)
    result = Mbq().quantize_site(site)
    token_weights = np.where(site.activations.is_visual.numpy(), visual_weight, 1.0)
    factor = slow_search(site, slow_nearest, token_weights, 1)
    assert result.factor is not None
    np.testing.assert_allclose(result.factor.numpy(), factor, rtol=1e-5)
    for name, weight in site.weights.items():
        restored = dequantize(result.quantized[name]).numpy()
        wanted = slow_nearest(weight.numpy() * result.factor.numpy(), scheme)
        np.testing.assert_allclose(restored, wanted, rtol=1e-4, atol=1e-6)


def test_mbq_follows_the_modality_that_counts(make_site: Callable[..., Site]) -> None:
    site = make_site(Scheme(granularity="channel", bits=2), num_outputs=(16,), num_inputs=40, num_samples=200)
    samples = site.activations.samples
    samples[site.activations.is_visual, :20] *= 0.01
    samples[~site.activations.is_visual, 20:] *= 0.01
    errors = {}
    for weight in (1e-3, 1e3):
        scaled = Site(
            weights=site.weights,
            schemes=site.schemes,
            activations=site.activations,
            scalable=True,
            visual_weight=weight,
        )
        result = Mbq().quantize_site(scaled)
        assert result.factor is not None
        restored = dequantize(result.quantized["layer0.weight"]) / result.factor
        wrong = (samples @ (restored - site.weights["layer0.weight"]).T).abs().sum(1)
        errors[weight] = {visual: float(wrong[site.activations.is_visual == visual].sum()) for visual in (True, False)}
    assert errors[1e3][True] <= errors[1e-3][True]
    assert errors[1e-3][False] <= errors[1e3][False]


@pytest.mark.parametrize("method", [Awq(), Awq(num_clips=1), Mbq()], ids=["awq", "awq-search", "mbq"])
def test_error_is_below_that_of_nearest(method: Awq | Mbq, make_site: Callable[..., Site]) -> None:
    for seed in range(3):
        site = make_site(Scheme(group_size=16, bits=3), num_outputs=(24,), num_inputs=64, num_samples=300, seed=seed)
        weight, samples = site.weights["layer0.weight"], site.activations.samples
        result = method.quantize_site(site)
        assert result.factor is not None
        found = (samples / result.factor) @ dequantize(result.quantized["layer0.weight"]).T
        nearest = samples @ dequantize(Nearest().quantize_site(site).quantized["layer0.weight"]).T
        wanted = samples @ weight.T
        assert (found - wanted).norm() < 0.97 * (nearest - wanted).norm()


def test_without_an_op_before_awq_only_clips(make_site: Callable[..., Site], slow_nearest: SlowNearest) -> None:
    scheme = Scheme(group_size=8, bits=3)
    site = make_site(scheme, scalable=False)
    result = Awq().quantize_site(site)
    assert result.factor is None
    weight, samples = site.weights["layer0.weight"].numpy(), site.activations.samples.double().numpy()
    wanted = slow_nearest(slow_clip(weight, samples, scheme, slow_nearest), scheme)
    restored = dequantize(result.quantized["layer0.weight"]).numpy()
    np.testing.assert_allclose(restored, wanted, rtol=1e-4, atol=1e-6)
    unscaled = Mbq().quantize_site(site)
    assert unscaled.factor is None
    nearest = Nearest().quantize_site(site).quantized["layer0.weight"]
    assert torch.equal(unscaled.quantized["layer0.weight"].codes, nearest.codes)
    assert not torch.equal(result.quantized["layer0.weight"].codes, nearest.codes)


@pytest.mark.parametrize("name", ["layers.0.self_attn.q_proj.weight", "attn.to_k.weight", "attention.query.weight"])
def test_queries_and_keys_are_not_cut(name: str, make_site: Callable[..., Site]) -> None:
    scheme = Scheme(group_size=8, bits=3)
    plain = make_site(scheme, scalable=False)
    weight = plain.weights["layer0.weight"]
    for label, cut in ((name, False), ("layers.0.mlp.up_proj.weight", True)):
        site = Site(weights={label: weight}, schemes={label: scheme}, activations=plain.activations, scalable=False)
        nearest = Nearest().quantize_site(site).quantized[label]
        assert torch.equal(Awq().quantize_site(site).quantized[label].scales, nearest.scales) is not cut


@pytest.mark.parametrize("granularity", ["rows", "agq"])
@pytest.mark.parametrize("axis", ["in", "out"])
def test_every_scheme_works(granularity: str, axis: str, make_site: Callable[..., Site]) -> None:
    site = make_site(Scheme(granularity=granularity, axis=axis, bits=3), num_outputs=(9,), num_samples=200)
    weight, samples = site.weights["layer0.weight"], site.activations.samples
    nearest = dequantize(Nearest().quantize_site(site).quantized["layer0.weight"])
    for method in (Awq(), Mbq()):
        result = method.quantize_site(site)
        assert result.factor is not None
        restored = dequantize(result.quantized["layer0.weight"]) / result.factor
        assert (samples @ (restored - weight).T).norm() <= 1.05 * (samples @ (nearest - weight).T).norm()


@pytest.mark.parametrize(
    ("method", "field"), [(Awq, "num_ratios"), (Awq, "num_clips"), (Mbq, "num_ratios")], ids=lambda v: str(v)
)
def test_settings_are_checked(method: type[Awq] | type[Mbq], field: str) -> None:
    with pytest.raises(SchemeError, match=field):
        method(**{field: 0})
