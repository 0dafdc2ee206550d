"""What holds for every method."""

from collections.abc import Callable
from dataclasses import FrozenInstanceError, replace

import pytest
import torch

from quantpack import CalibrationError, Scheme, WeightError, dequantize
from quantpack.calibration.sites import Activations, Method, Site
from quantpack.methods.registry import METHODS


@pytest.fixture(params=sorted(METHODS))
def method(request: pytest.FixtureRequest) -> Method:
    return METHODS[request.param]()


def test_names() -> None:
    assert sorted(METHODS) == ["awq", "ecm", "gptq", "mbq", "rtn", "smoothquant"]


@pytest.mark.parametrize("granularity", ["tensor", "channel", "group", "rows", "agq"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_result_stands_for_the_weights(
    method: Method, granularity: str, dtype: torch.dtype, make_site: Callable[..., Site]
) -> None:
    site = make_site(Scheme(granularity=granularity), num_outputs=(9, 4), num_inputs=33, dead=(1, 32), dtype=dtype)
    before = {name: weight.clone() for name, weight in site.weights.items()}
    result = method.quantize_site(site)
    factor = torch.ones(33) if result.factor is None else result.factor
    assert factor.dtype == torch.float32
    assert bool(((factor > 0) & factor.isfinite()).all())
    assert result.quantized.keys() == site.weights.keys()
    samples = site.activations.samples
    for name, weight in site.weights.items():
        assert torch.equal(weight, before[name])
        assert result.quantized[name].scales.dtype == dtype
        restored = dequantize(result.quantized[name], torch.float32)
        wanted = samples @ weight.float().T
        assert ((samples / factor) @ restored.T - wanted).norm() < 0.5 * wanted.norm()


def test_same_site_same_codes(method: Method, make_site: Callable[..., Site]) -> None:
    first, second = (method.quantize_site(make_site(Scheme(group_size=8))).quantized["layer0.weight"] for _ in range(2))
    assert torch.equal(first.codes, second.codes)
    assert torch.equal(first.scales, second.scales)


def test_inputs_that_are_all_dead(method: Method, make_site: Callable[..., Site]) -> None:
    site = make_site(Scheme(group_size=8), dead=tuple(range(20)))
    result = method.quantize_site(site)
    assert result.factor is None or bool((result.factor > 0).all() and result.factor.isfinite().all())


def test_settings_cannot_change(method: Method) -> None:
    with pytest.raises((FrozenInstanceError, AttributeError, TypeError)):
        method.alpha = 3  # type: ignore[attr-defined]


def bad_activations(given: Activations) -> dict[str, tuple[Activations, str]]:
    nan = given.max_abs.clone()
    nan[3] = float("nan")
    return {
        "short maxima": (replace(given, max_abs=given.max_abs[:-1]), r"max_abs: expected \[20\], got \[19\]"),
        "nan maxima": (replace(given, max_abs=nan), "max_abs: expected finite numbers, got nan"),
        "negative means": (replace(given, mean_abs=-given.mean_abs), "mean_abs: expected numbers of at least 0, got -"),
    }


@pytest.mark.parametrize("fault", ["short maxima", "nan maxima", "negative means"])
def test_wrong_activations_are_refused_by_name(method: Method, fault: str, make_site: Callable[..., Site]) -> None:
    site = make_site(Scheme())
    activations, message = bad_activations(site.activations)[fault]
    with pytest.raises(CalibrationError, match=rf"^layer0\.weight: activations: {message}"):
        method.quantize_site(replace(site, activations=activations))


@pytest.mark.parametrize("name", ["awq", "mbq"])
def test_wrong_samples_are_refused_by_name(name: str, make_site: Callable[..., Site]) -> None:
    site = make_site(Scheme())
    samples = site.activations.samples
    infinite = samples.clone()
    infinite[0, 0] = float("inf")
    for bad, message in (
        (samples[:-1], r"samples: expected \[40, 20\], got \[39, 20\]"),
        (samples.T, r"samples: expected \[40, 20\], got \[20, 40\]"),
        (infinite, "samples: expected finite numbers, got .* to inf"),
    ):
        with pytest.raises(CalibrationError, match=rf"^layer0\.weight: activations: {message}"):
            METHODS[name]().quantize_site(replace(site, activations=replace(site.activations, samples=bad)))
    none = replace(site.activations, samples=samples[:0], is_visual=site.activations.is_visual[:0])
    with pytest.raises(CalibrationError, match="at least one sampled token, got none"):
        METHODS[name]().quantize_site(replace(site, activations=none))


def test_wrong_second_moments_are_refused_by_name(make_site: Callable[..., Site]) -> None:
    site = make_site(Scheme())
    moment = site.activations.second_moment
    assert moment is not None
    for bad, message in (
        (None, r"expected \[20, 20\], got none"),
        (moment[:10], r"expected \[20, 20\], got \[10, 20\]"),
        (moment * float("nan"), "expected finite numbers, got nan"),
        (-moment, "diagonal: expected numbers of at least 0"),
    ):
        with pytest.raises(CalibrationError, match=rf"^layer0\.weight: activations: second_moment: {message}"):
            METHODS["gptq"]().quantize_site(replace(site, activations=replace(site.activations, second_moment=bad)))


def test_wrong_sites_are_refused(method: Method, make_site: Callable[..., Site]) -> None:
    site = make_site(Scheme())
    weight = site.weights["layer0.weight"]
    with pytest.raises(CalibrationError, match="expected at least one weight, got none"):
        method.quantize_site(replace(site, weights={}))
    with pytest.raises(CalibrationError, match=r"^z\.weight: expected a weight \[O, 20\], got \[6, 19\]"):
        method.quantize_site(replace(site, weights={"layer0.weight": weight, "z.weight": weight[:, 1:]}))
    with pytest.raises(CalibrationError, match=r"^layer0\.weight: expected a scheme for each weight"):
        method.quantize_site(replace(site, schemes={}))
    with pytest.raises(CalibrationError, match=r"^layer0\.weight: visual_weight: expected a finite number >= 0"):
        method.quantize_site(replace(site, visual_weight=float("nan")))
    broken = weight.clone()
    broken[0, 0] = float("nan")
    with pytest.raises(WeightError, match=r"^layer0\.weight"):
        method.quantize_site(replace(site, weights={"layer0.weight": broken}))
