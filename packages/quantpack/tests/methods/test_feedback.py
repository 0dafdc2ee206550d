"""Error feedback against optimal brain surgery as it is first written down: one input at a time, explicit inverses."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from quantpack import CalibrationError, Scheme, SchemeError, dequantize
from quantpack.calibration.sites import Site
from quantpack.methods.feedback import factorize, feed_back
from quantpack.methods.gptq import Gptq
from quantpack.methods.grid import WeightGrid, fit_grid
from quantpack.methods.nearest import Nearest
from quantpack.scheme import Block

SCHEMES = [
    Scheme(granularity="tensor"),
    Scheme(granularity="channel", bits=3, symmetric=True),
    Scheme(granularity="group", group_size=7),
    Scheme(granularity="rows", num_rows=2, bits=2),
    Scheme(granularity="agq", axis="in", blocks=(Block(share=0.2, group_size=3), Block(share=0.8, num_channels=2))),
    Scheme(granularity="agq", axis="out", symmetric=True),
]
SHAPES = [(1, 1), (3, 1), (1, 5), (5, 17), (8, 130)]


def gptq_codes(
    weight: torch.Tensor,
    scale: torch.Tensor,
    zero: torch.Tensor,
    lowest: int,
    highest: int,
    second_moment: torch.Tensor,
    *,
    damping: float = 0.01,
    block_size: int = 128,
    activation_order: bool = False,
    name: str = "weight",
) -> torch.Tensor:
    """Both halves of the core: the second moment factorized, then errors fed back."""
    feedback = factorize(second_moment, damping=damping, activation_order=activation_order, name=name)
    return feed_back(weight, scale, zero, lowest, highest, feedback, block_size)


def slow_codes(
    weight: torch.Tensor, grid: WeightGrid, moment: torch.Tensor, damping: float, activation_order: bool
) -> np.ndarray:
    """Rounds an input, then moves every other open input to where the error is least, all in float64."""
    left = weight.double().numpy().copy()
    scale, zero = grid.scale.double().numpy(), grid.zero.double().numpy()
    damped = moment.double().numpy() + damping * float(moment.diagonal().double().mean()) * np.eye(len(moment))
    lowest, highest = grid.scheme.code_range
    codes = np.zeros(left.shape, dtype=np.int64)
    order = (
        list(np.argsort(-moment.diagonal().numpy(), kind="stable")) if activation_order else list(range(len(damped)))
    )
    while order:
        inverse = np.linalg.inv(damped[np.ix_(order, order)])
        first = order[0]
        codes[:, first] = np.clip(np.rint(left[:, first] / scale[:, first]) + zero[:, first], lowest, highest)
        error = left[:, first] - (codes[:, first] - zero[:, first]) * scale[:, first]
        for row in range(left.shape[0]):
            for position, column in enumerate(order[1:], start=1):
                left[row, column] -= error[row] * inverse[0, position] / inverse[0, 0]
        order = order[1:]
    return codes


def output_error(weight: torch.Tensor, restored: torch.Tensor, moment: torch.Tensor) -> float:
    difference = (weight - restored).double()
    return float(torch.trace(difference @ moment.double() @ difference.T))


@pytest.mark.parametrize("scheme", SCHEMES, ids=lambda s: f"{s.granularity}-{s.axis}-{s.bits}")
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("activation_order", [False, True])
def test_codes_are_those_of_the_reference(
    scheme: Scheme, shape: tuple[int, int], activation_order: bool, make_site: Callable[..., Site]
) -> None:
    site = make_site(scheme, num_outputs=(shape[0],), num_inputs=shape[1])
    weight, moment = site.weights["layer0.weight"], site.activations.second_moment
    assert moment is not None
    grid = fit_grid(weight, scheme, name="w", ranking=None)
    before = moment.clone()
    codes = gptq_codes(
        weight, grid.scale, grid.zero, *scheme.code_range, moment, block_size=16, activation_order=activation_order
    )
    assert codes.dtype == torch.int8
    assert np.array_equal(codes.numpy(), slow_codes(weight, grid, moment, 0.01, activation_order))
    assert torch.equal(moment, before)


@pytest.mark.parametrize("scheme", SCHEMES, ids=lambda s: f"{s.granularity}-{s.axis}-{s.bits}")
@pytest.mark.parametrize("activation_order", [False, True])
def test_output_error_is_below_that_of_nearest(
    scheme: Scheme, activation_order: bool, make_site: Callable[..., Site]
) -> None:
    for seed in range(3):
        site = make_site(scheme, num_outputs=(24,), num_inputs=60, seed=seed)
        weight, moment = site.weights["layer0.weight"], site.activations.second_moment
        assert moment is not None
        fed_back = Gptq(activation_order=activation_order).quantize_site(site)
        nearest = Nearest().quantize_site(site)
        assert fed_back.factor is None
        errors = [
            output_error(weight, dequantize(result.quantized["layer0.weight"]), moment)
            for result in (fed_back, nearest)
        ]
        assert errors[0] < 0.8 * errors[1]
        grids = [result.quantized["layer0.weight"] for result in (fed_back, nearest)]
        assert torch.equal(grids[0].scales, grids[1].scales)


@settings(max_examples=30, deadline=None)
@given(num_outputs=st.integers(1, 9), num_inputs=st.integers(1, 40), seed=st.integers(0, 999), ordered=st.booleans())
def test_inputs_that_do_not_correlate_get_nearest_codes(
    num_outputs: int, num_inputs: int, seed: int, ordered: bool
) -> None:
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(num_outputs, num_inputs, generator=generator)
    energy = torch.rand(num_inputs, generator=generator) * (torch.rand(num_inputs, generator=generator) > 0.3)
    grid = fit_grid(weight, Scheme(group_size=8), name="w", ranking=None)
    codes = gptq_codes(weight, grid.scale, grid.zero, 0, 15, energy.diag(), block_size=7, activation_order=ordered)
    assert torch.equal(codes, (weight / grid.scale).round().add(grid.zero).clamp(0, 15).to(torch.int8))


def test_dead_inputs_get_nearest_codes_and_others_make_up_for_nothing(make_site: Callable[..., Site]) -> None:
    scheme = Scheme(granularity="channel")
    site = make_site(scheme, num_outputs=(5, 4), num_inputs=30, dead=(0, 7, 29))
    fed_back = Gptq(activation_order=True).quantize_site(site).quantized
    nearest = Nearest().quantize_site(site).quantized
    assert fed_back.keys() == nearest.keys() == site.weights.keys()
    for name in site.weights:
        assert torch.equal(fed_back[name].codes[:, [0, 7, 29]], nearest[name].codes[:, [0, 7, 29]])
        assert not torch.equal(fed_back[name].codes, nearest[name].codes)


def test_result_does_not_depend_on_the_block_size(make_site: Callable[..., Site]) -> None:
    site = make_site(Scheme(group_size=8), num_outputs=(9,), num_inputs=50)
    found = [Gptq(block_size=size).quantize_site(site).quantized["layer0.weight"].codes for size in (1, 13, 50, 999)]
    assert all(torch.equal(codes, found[0]) for codes in found)


def test_factor_is_in_place_and_unit_triangular() -> None:
    inputs = torch.randn(90, 40, generator=torch.Generator().manual_seed(0))
    moment = inputs.T @ inputs / 90
    feedback = factorize(moment, damping=0.01, activation_order=True, name="w")
    assert feedback.ratios.stride() == (1, 40)
    assert torch.equal(feedback.ratios.triu(), torch.eye(40))
    damped = (moment + 0.01 * moment.diagonal().mean() * torch.eye(40)).double()[feedback.layout][:, feedback.layout]
    lower = torch.linalg.cholesky(damped)
    torch.testing.assert_close(feedback.ratios.double(), lower / lower.diagonal(), atol=1e-5, rtol=1e-4)


def test_float32_costs_nothing_on_a_steep_spectrum() -> None:
    generator = torch.Generator().manual_seed(3)
    rotation, _ = torch.linalg.qr(torch.randn(96, 96, generator=generator))
    energy = torch.arange(1, 97).float() ** -3.0
    moment = (rotation * energy) @ rotation.T
    weight = torch.randn(12, 96, generator=generator)
    scheme = Scheme(group_size=32)
    grid = fit_grid(weight, scheme, name="w", ranking=None)
    fast = gptq_codes(weight, grid.scale, grid.zero, 0, 15, moment)
    slow = torch.from_numpy(slow_codes(weight, grid, moment, 0.01, False))
    restored = [(codes - grid.zero) * grid.scale for codes in (fast, slow)]
    errors = [output_error(weight, tensor, moment) for tensor in restored]
    assert errors[0] <= 1.01 * errors[1]


def test_damping_is_raised_until_the_matrix_is_positive() -> None:
    direction = torch.randn(1, 30, generator=torch.Generator().manual_seed(0))
    moment = direction.T @ direction
    weight = torch.randn(4, 30, generator=torch.Generator().manual_seed(1))
    grid = fit_grid(weight, Scheme(), name="w", ranking=None)
    codes = gptq_codes(weight, grid.scale, grid.zero, 0, 15, moment, damping=0.0)
    assert int(codes.min()) >= 0
    assert int(codes.max()) <= 15


def test_a_matrix_that_is_no_second_moment_is_refused_by_name() -> None:
    moment = torch.full((6, 6), -5.0)
    moment.fill_diagonal_(1.0)
    ones = torch.ones(2, 6)
    with pytest.raises(CalibrationError, match=r"^down\.weight: .* positive semidefinite .* damping of 10 "):
        gptq_codes(ones, ones, ones, 0, 15, moment * 1e6, name="down.weight")


@pytest.mark.parametrize("settings_", [{"damping": -0.1}, {"damping": float("nan")}, {"block_size": 0}])
def test_settings_are_checked(settings_: dict[str, float]) -> None:
    with pytest.raises(SchemeError, match=next(iter(settings_))):
        Gptq(**settings_)
