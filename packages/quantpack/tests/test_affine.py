"""Quantization against a slow reference that takes one group at a time."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from quantpack import Block, QuantpackError, Scheme, SchemeError, WeightError, dequantize, quantize_tensor

AGQ = (Block(share=0.3, group_size=3), Block(share=0.25, num_channels=2), Block(share=0.45))
SIZES = [
    {"granularity": "tensor"},
    {"granularity": "channel"},
    {"granularity": "group", "group_size": 1},
    {"granularity": "group", "group_size": 4},
    {"granularity": "group", "group_size": 128},
    {"granularity": "rows", "num_rows": 2},
    {"granularity": "rows", "num_rows": 5},
    {"granularity": "agq", "blocks": AGQ},
]
SCHEMES = [
    Scheme(**size, symmetric=symmetric, axis=axis)
    for size in SIZES
    for symmetric in (False, True)
    for axis in ("out", "in")
]
SHAPES = [(1, 1), (1, 7), (7, 1), (3, 128), (5, 129), (13, 255), (4, 3, 5)]


def reference_groups(channels: np.ndarray, scheme: Scheme) -> list[list[tuple[int, int]]]:
    """(channel, place) of the weights of each group; channels [C, L]."""
    num_channels, length = channels.shape
    blocks = [Block(share=1.0)]
    if scheme.granularity == "agq":
        blocks = list(scheme.blocks)
    order = sorted(range(num_channels), key=lambda channel: (-np.abs(channels[channel]).max(), channel))
    groups = []
    for number, block in enumerate(blocks):
        taken = len(order)
        if number < len(blocks) - 1:
            taken = min(math.ceil(block.share * num_channels), len(order))
        chosen, order = sorted(order[:taken]), order[taken:]
        size, together = block.group_size, block.num_channels
        if scheme.granularity != "agq":
            size = scheme.group_size
            together = {"tensor": num_channels, "channel": 1, "rows": scheme.num_rows, "group": 0}[scheme.granularity]
        if size:
            groups += [
                [(channel, place) for place in range(start, min(start + size, length))]
                for channel in chosen
                for start in range(0, length, size)
            ]
        else:
            together = together or max(len(chosen), 1)
            groups += [
                [(channel, place) for channel in chosen[start : start + together] for place in range(length)]
                for start in range(0, len(chosen), together)
            ]
    return groups


def reference(weight: Tensor, scheme: Scheme) -> tuple[np.ndarray, np.ndarray, list[float], list[int]]:
    """Codes, restored weights, scales and zeros, one group at a time."""
    matrix = weight.reshape(weight.shape[0], -1).float().numpy()
    channels = matrix if scheme.axis == "out" else matrix.T
    codes = np.zeros(channels.shape, dtype=np.int64)
    restored = np.zeros(channels.shape, dtype=np.float32)
    scales, zeros = [], []
    levels = 2**scheme.bits
    for places in reference_groups(channels, scheme):
        values = np.array([channels[place] for place in places], dtype=np.float32)
        low, high = min(values.min(), np.float32(0)), max(values.max(), np.float32(0))
        steps = np.float32(levels // 2 - 1 if scheme.symmetric else levels - 1)
        exact = max(high, -low) / steps if scheme.symmetric else (high - low) / steps
        scale = np.float32(torch.tensor(exact).to(weight.dtype).float().item())
        if low == high == 0:
            scale = np.float32(1)
        zero = 0 if scheme.symmetric else int(min(max(-np.rint(low / scale), 0), levels - 1))
        lowest, highest = (-levels // 2, levels // 2 - 1) if scheme.symmetric else (0, levels - 1)
        for place, value in zip(places, values, strict=True):
            codes[place] = int(min(max(np.rint(value / scale) + zero, lowest), highest))
            restored[place] = np.float32(codes[place] - zero) * scale
        scales.append(float(scale))
        zeros.append(zero)
    if scheme.axis == "in":
        codes, restored = codes.T, restored.T
    return codes, restored, scales, zeros


def check_against_reference(weight: Tensor, scheme: Scheme) -> None:
    quantized = quantize_tensor(weight, scheme)
    codes, expected, scales, zeros = reference(weight, scheme)
    assert quantized.scales.dtype == weight.dtype
    assert quantized.scales.float().tolist() == scales
    assert np.array_equal(quantized.codes.numpy(), codes)
    if scheme.symmetric:
        assert quantized.zeros is None
    else:
        assert quantized.zeros is not None
        assert quantized.zeros.tolist() == zeros
    restored = dequantize(quantized, torch.float32)
    assert restored.shape == weight.shape
    assert np.array_equal(restored.reshape(codes.shape).numpy(), expected)
    assert torch.equal(dequantize(quantized), restored.to(weight.dtype))


@pytest.mark.parametrize("scheme", SCHEMES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_equals_the_reference(shape: tuple[int, ...], scheme: Scheme, dtype: torch.dtype) -> None:
    torch.manual_seed(len(shape) + sum(shape))
    check_against_reference(torch.randn(shape).to(dtype), scheme)


@pytest.mark.parametrize("symmetric", [False, True])
def test_equals_the_reference_on_an_awkward_shape(symmetric: bool) -> None:
    torch.manual_seed(0)
    check_against_reference(torch.randn(830, 545), Scheme(symmetric=symmetric))


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_equals_the_reference_on_anything(data: st.DataObject) -> None:
    num_rows, num_cols = data.draw(st.integers(1, 6)), data.draw(st.integers(1, 20))
    size = num_rows * num_cols
    values = data.draw(st.lists(st.floats(-1e4, 1e4, width=16), min_size=size, max_size=size))
    dtype = data.draw(st.sampled_from([torch.float32, torch.bfloat16, torch.float64]))
    scheme = Scheme(
        bits=data.draw(st.integers(2, 4)),
        granularity=data.draw(st.sampled_from(["tensor", "channel", "group", "rows", "agq"])),
        group_size=data.draw(st.integers(1, 24)),
        num_rows=data.draw(st.integers(1, 8)),
        blocks=AGQ,
        axis=data.draw(st.sampled_from(["out", "in"])),
        symmetric=data.draw(st.booleans()),
    )
    check_against_reference(torch.tensor(values).reshape(num_rows, num_cols).to(dtype), scheme)


@pytest.mark.parametrize("scheme", SCHEMES, ids=str)
def test_error_is_at_most_half_a_step(scheme: Scheme) -> None:
    torch.manual_seed(3)
    weight = torch.randn(33, 130)
    error = (dequantize(quantize_tensor(weight, scheme)) - weight).abs()
    # The zero point rounds too, so an end of the range can be one step off at most.
    assert error.max() <= quantize_tensor(weight, scheme).scales.max() * (0.5001 if scheme.symmetric else 1.0001)


@pytest.mark.parametrize("scheme", SCHEMES, ids=str)
def test_zeros_stay_zero(scheme: Scheme) -> None:
    weight = torch.zeros(6, 300)
    weight[2, 5] = 1.0
    restored = dequantize(quantize_tensor(weight, scheme))
    assert torch.isfinite(restored).all()
    assert torch.equal(restored != 0, weight != 0)


@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("sign", [-1.0, 1.0])
def test_a_group_on_one_side_of_zero_survives(symmetric: bool, sign: float) -> None:
    weight = sign * torch.linspace(10.0, 11.0, 64).reshape(1, 64)
    restored = dequantize(quantize_tensor(weight, Scheme(symmetric=symmetric)))
    assert (restored - weight).abs().max() < 1.0


@pytest.mark.parametrize("symmetric", [False, True])
def test_extreme_ranges(symmetric: bool) -> None:
    huge = torch.tensor([[3.4e38, -3.4e38, 0.0]])
    tiny = torch.tensor([[1e-7, 0.0, -1e-7]], dtype=torch.float16)
    for weight in (huge, tiny):
        quantized = quantize_tensor(weight, Scheme(symmetric=symmetric))
        assert torch.isfinite(quantized.scales).all()
        assert (quantized.scales > 0).all()
        assert torch.sign(dequantize(quantized)).tolist() == torch.sign(weight).tolist()


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
def test_refuses_what_is_not_finite_by_name(bad: float) -> None:
    weight = torch.zeros(4, 4)
    weight[1, 2] = bad
    with pytest.raises(WeightError, match=r"^layers\.3\.weight: expected finite"):
        quantize_tensor(weight, Scheme(), name="layers.3.weight")


@pytest.mark.parametrize("bad", [torch.zeros(4), torch.zeros(0, 4), torch.zeros(2, 2, dtype=torch.int32)], ids=str)
def test_refuses_what_is_no_matrix_of_floats(bad: Tensor) -> None:
    with pytest.raises(WeightError, match="expected a floating tensor"):
        quantize_tensor(bad, Scheme())


@pytest.mark.parametrize(
    "fields",
    [
        {"granularity": "columns"},
        {"axis": "both"},
        {"bits": 5},
        {"bits": True},
        {"granularity": "rows", "num_rows": 0},
        {"granularity": "agq", "blocks": ()},
        {"granularity": "agq", "blocks": (Block(share=0.5),)},
        {"group_size": 0},
        {"group_size": True},
        {"symmetric": 1},
    ],
    ids=str,
)
def test_refuses_schemes_that_do_not_exist(fields: dict[str, object]) -> None:
    with pytest.raises(QuantpackError, match="expected"):
        Scheme(**fields)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "fields",
    [{"share": 0}, {"share": 1.5}, {"share": "all"}, {"group_size": -1}, {"group_size": 2, "num_channels": 2}],
    ids=str,
)
def test_refuses_blocks_that_do_not_exist(fields: dict[str, object]) -> None:
    with pytest.raises(SchemeError, match=r"block: .*expected"):
        Block(**fields)  # type: ignore[arg-type]


def test_importance_says_which_channels_are_fine() -> None:
    torch.manual_seed(0)
    scheme = Scheme(
        granularity="agq", blocks=(Block(share=0.25, group_size=2), Block(share=0.75, num_channels=3)), axis="in"
    )
    importance = torch.tensor([0.0, 5.0, 1.0, 5.0, 2.0, 3.0, 1.0, 0.0])
    quantized = quantize_tensor(torch.randn(4, 8), scheme, importance=importance)
    assert quantized.channel_blocks is not None
    assert quantized.channel_blocks.tolist() == [1, 0, 1, 0, 1, 1, 1, 1]
    assert quantized.scales.numel() == 2 * 2 + 2
    with pytest.raises(WeightError, match=r"w: expected a finite importance for each of 8 channels, got \[4\]"):
        quantize_tensor(torch.randn(4, 8), scheme, name="w", importance=torch.ones(4))


def test_large_matrices_are_worked_on_in_parts() -> None:
    torch.manual_seed(0)
    weight = torch.randn(2100, 2053)
    before = weight.clone()
    for scheme in (Scheme(granularity="tensor"), Scheme(granularity="rows", num_rows=900), Scheme(axis="in")):
        whole = quantize_tensor(weight, scheme)
        values = whole.grid().spread(whole.scales)
        zeros = whole.grid().spread(whole.zeros)
        assert torch.equal(whole.codes.float(), ((weight / values).round() + zeros).clamp(0, 15))
        assert torch.equal(dequantize(whole), (whole.codes.float() - zeros) * values)
    assert torch.equal(weight, before)


def test_group_size_matters_for_groups_only() -> None:
    assert Scheme(granularity="channel", group_size=64) == Scheme(granularity="channel")
