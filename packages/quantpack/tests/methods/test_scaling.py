import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from quantpack import Scheme
from quantpack.calibration.sites import Site
from quantpack.methods.scaling import power_factor, scale_site
from quantpack.methods.smoothquant import smooth_factor

MAXIMA = st.lists(st.floats(0, 2.0**120, width=32), min_size=1, max_size=30)


@settings(max_examples=100, deadline=None)
@given(statistic=MAXIMA, exponent=st.floats(0, 1))
def test_power_factor_is_the_formula(statistic: list[float], exponent: float) -> None:
    factor = power_factor(torch.tensor(statistic), exponent)
    assert factor.dtype == torch.float32
    largest = max(statistic)
    if largest == 0:
        assert factor.tolist() == [1.0] * len(statistic)
        return
    powers = [max(value / largest, 1e-4) ** exponent for value in statistic]
    middle = math.sqrt(max(powers) * min(powers))
    assert factor.tolist() == pytest.approx([power / middle for power in powers], rel=1e-5)
    assert all(0 < value < math.inf for value in factor.tolist())
    assert float(factor.max() * factor.min()) == pytest.approx(1.0, rel=1e-5)


@settings(max_examples=100, deadline=None)
@given(
    pairs=st.lists(st.tuples(*[st.floats(0, 2.0**100, width=32)] * 2), min_size=1, max_size=20), alpha=st.floats(0, 1)
)
def test_smooth_factor_is_the_formula(pairs: list[tuple[float, float]], alpha: float) -> None:
    inputs, weights = zip(*pairs, strict=True)
    factor = smooth_factor(torch.tensor(inputs), torch.tensor(weights), alpha)
    wanted = [max(x, 1e-5) ** alpha / max(w, 1e-5) ** (1 - alpha) for x, w in pairs]
    assert factor.tolist() == pytest.approx(wanted, rel=1e-5)
    assert all(0 < value < math.inf for value in factor.tolist())


def test_scaled_site_gives_the_same_outputs(make_site: Callable[..., Site]) -> None:
    site = make_site(Scheme(), num_outputs=(4, 3), dead=(2,))
    factor = power_factor(site.activations.max_abs, 0.7)
    before = site.activations.second_moment
    assert before is not None
    kept = before.clone()
    scaled = scale_site(site, factor)
    for name, weight in site.weights.items():
        torch.testing.assert_close(
            scaled.activations.samples @ scaled.weights[name].T, site.activations.samples @ weight.T
        )
    after = scaled.activations.second_moment
    assert after is not None
    torch.testing.assert_close(after, before / torch.outer(factor, factor))
    assert torch.equal(before, kept)
    assert torch.equal(scaled.activations.max_abs, site.activations.max_abs / factor)
    assert torch.equal(scaled.activations.mean_abs, site.activations.mean_abs / factor)


def test_scaled_weights_keep_their_dtype(make_site: Callable[..., Site]) -> None:
    site = make_site(Scheme(), dtype=torch.bfloat16)
    scaled = scale_site(site, torch.full((20,), 1.5))
    assert scaled.weights["layer0.weight"].dtype == torch.bfloat16
