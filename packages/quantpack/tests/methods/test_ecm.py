"""The fixed scalings: ECM's and SmoothQuant's."""

from collections.abc import Callable

import numpy as np
import pytest
import torch

from quantpack import Scheme, SchemeError, dequantize
from quantpack.calibration.sites import Site
from quantpack.methods.ecm import Ecm
from quantpack.methods.gptq import Gptq
from quantpack.methods.nearest import Nearest
from quantpack.methods.smoothquant import SmoothQuant
from quantpack.scheme import Block

SlowNearest = Callable[[np.ndarray, Scheme], np.ndarray]


@pytest.mark.parametrize("alpha", [0.1, 0.5, 1.0])
@pytest.mark.parametrize("granularity", ["tensor", "channel", "group"])
def test_ecm_is_the_reference(
    alpha: float, granularity: str, make_site: Callable[..., Site], slow_nearest: SlowNearest
) -> None:
    scheme = Scheme(granularity=granularity, group_size=7, symmetric=True)
    site = make_site(scheme, num_outputs=(5, 7), num_inputs=23, dead=(4,))
    result = Ecm(alpha=alpha).quantize_site(site)
    powers = [max(value, 1e-4 * max(site.activations.max_abs.tolist())) ** alpha for value in site.activations.max_abs]
    factor = np.array([float(power) for power in powers])
    factor /= np.sqrt(factor.max() * factor.min())
    assert result.factor is not None
    np.testing.assert_allclose(result.factor.numpy(), factor, rtol=1e-5)
    for name, weight in site.weights.items():
        wanted = slow_nearest(weight.numpy() * result.factor.numpy(), scheme)
        np.testing.assert_allclose(dequantize(result.quantized[name]).numpy(), wanted, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("alpha", [0.0, 0.5, 1.0])
def test_smoothquant_is_the_reference(alpha: float, make_site: Callable[..., Site], slow_nearest: SlowNearest) -> None:
    scheme = Scheme(granularity="tensor")
    site = make_site(scheme, num_outputs=(5, 7), num_inputs=23, dead=(4,))
    site.weights["layer0.weight"][:, 9] = 0
    site.weights["layer1.weight"][:, 9] = 0
    result = SmoothQuant(alpha=alpha).quantize_site(site)
    assert result.factor is not None
    for column in range(23):
        largest = max(float(weight[:, column].abs().max()) for weight in site.weights.values())
        wanted = max(float(site.activations.max_abs[column]), 1e-5) ** alpha / max(largest, 1e-5) ** (1 - alpha)
        assert float(result.factor[column]) == pytest.approx(wanted, rel=1e-5)
    for name, weight in site.weights.items():
        restored = dequantize(result.quantized[name]).numpy()
        wanted = slow_nearest(weight.numpy() * result.factor.numpy(), scheme)
        np.testing.assert_allclose(restored, wanted, rtol=1e-4, atol=1e-6 * float(np.abs(wanted).max()))


def test_smoothquant_at_alpha_half_gives_weights_and_inputs_one_spread(make_site: Callable[..., Site]) -> None:
    site = make_site(Scheme(granularity="tensor"))
    factor = SmoothQuant().quantize_site(site).factor
    assert factor is not None
    weights = site.weights["layer0.weight"].abs().amax(0) * factor
    torch.testing.assert_close(weights, site.activations.max_abs / factor)


@pytest.mark.parametrize("method", [Ecm(alpha=0.5), SmoothQuant()], ids=["ecm", "smoothquant"])
def test_without_an_op_before_weights_stay_as_they_are(
    method: Ecm | SmoothQuant, make_site: Callable[..., Site]
) -> None:
    site = make_site(Scheme(), scalable=False)
    result = method.quantize_site(site)
    assert result.factor is None
    nearest = Nearest().quantize_site(site).quantized["layer0.weight"]
    assert torch.equal(result.quantized["layer0.weight"].codes, nearest.codes)


def test_ecm_with_error_feedback_is_gptq_on_the_scaled_site(make_site: Callable[..., Site]) -> None:
    site = make_site(Scheme(granularity="channel"), num_outputs=(12,), num_inputs=40)
    weight, moment = site.weights["layer0.weight"], site.activations.second_moment
    assert moment is not None
    result = Ecm(alpha=0.4, rounding="gptq").quantize_site(site)
    factor = result.factor
    assert factor is not None
    scaled = Site(
        weights={"layer0.weight": weight * factor},
        schemes=site.schemes,
        activations=type(site.activations)(
            num_tokens=site.activations.num_tokens,
            max_abs=site.activations.max_abs / factor,
            mean_abs=site.activations.mean_abs / factor,
            second_moment=moment / torch.outer(factor, factor),
            samples=site.activations.samples / factor,
            is_visual=site.activations.is_visual,
        ),
        scalable=True,
    )
    direct = Gptq().quantize_site(scaled).quantized["layer0.weight"]
    found = result.quantized["layer0.weight"]
    assert (direct.codes != found.codes).float().mean() < 0.01
    errors = []
    for rounding in ("gptq", "nearest"):
        quantized = Ecm(alpha=0.4, rounding=rounding).quantize_site(site).quantized["layer0.weight"]
        difference = dequantize(quantized) / factor - weight
        errors.append(float(torch.trace(difference @ moment @ difference.T)))
    assert errors[0] < 0.8 * errors[1]
    assert Ecm(rounding="gptq").needs_second_moment
    assert not Ecm().needs_second_moment


def test_ecm_ranks_inputs_as_they_are_after_the_scaling(make_site: Callable[..., Site]) -> None:
    blocks = (Block(share=0.25, group_size=2), Block(share=0.75, num_channels=0))
    site = make_site(Scheme(granularity="agq", axis="in", blocks=blocks), dead=(3,))
    maxima = site.activations.max_abs
    for alpha in (0.0, 0.6):
        result = Ecm(alpha=alpha).quantize_site(site)
        left = maxima if result.factor is None else maxima / result.factor
        found = result.quantized["layer0.weight"].channel_blocks
        assert found is not None
        assert set(torch.nonzero(found == 0).squeeze(1).tolist()) == set(left.argsort(descending=True)[:5].tolist())


def test_agq_ranks_outputs_by_what_the_samples_give(make_site: Callable[..., Site]) -> None:
    site = make_site(Scheme(granularity="agq", axis="out"), num_outputs=(40,), num_samples=60)
    outputs = (site.activations.samples @ site.weights["layer0.weight"].T).abs().amax(0)
    for method in (Nearest(), Gptq(), Ecm(alpha=0.5)):
        found = method.quantize_site(site).quantized["layer0.weight"].channel_blocks
        assert found is not None
        assert set(torch.nonzero(found == 0).squeeze(1).tolist()) == set(outputs.argsort(descending=True)[:2].tolist())


@pytest.mark.parametrize(
    ("build", "field"),
    [
        (lambda: Ecm(alpha=1.1), "alpha"),
        (lambda: Ecm(alpha=float("nan")), "alpha"),
        (lambda: Ecm(rounding="up"), "rounding"),  # type: ignore[arg-type]
        (lambda: SmoothQuant(alpha=-0.1), "alpha"),
    ],
)
def test_settings_are_checked(build: Callable[[], object], field: str) -> None:
    with pytest.raises(SchemeError, match=field):
        build()
