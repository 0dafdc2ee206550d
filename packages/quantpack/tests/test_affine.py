"""Quantization against a slow reference that takes one group at a time."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from quantpack import QuantpackError, Scheme, WeightError, dequantize, quantize

SCHEMES = [
    Scheme(granularity=granularity, group_size=group_size, symmetric=symmetric)
    for granularity, group_size in (("tensor", 0), ("channel", 0), ("group", 1), ("group", 4), ("group", 128))
    for symmetric in (False, True)
]
SHAPES = [(1, 1), (1, 7), (7, 1), (3, 128), (5, 129), (13, 255), (4, 3, 5)]


def reference_groups(num_rows: int, num_cols: int, scheme: Scheme) -> list[list[list[tuple[int, int]]]]:
    """Positions of the weights of each group, [R][G][g]."""
    every = [[(row, col) for col in range(num_cols)] for row in range(num_rows)]
    if scheme.granularity == "tensor":
        return [[[place for row in every for place in row]]]
    if scheme.granularity == "channel":
        return [[row] for row in every]
    size = scheme.group_size
    return [[row[start : start + size] for start in range(0, num_cols, size)] for row in every]


def reference(weight: Tensor, scheme: Scheme) -> tuple[np.ndarray, list[list[float]], list[list[int]]]:
    matrix = weight.reshape(weight.shape[0], -1).float().numpy()
    codes = np.zeros(matrix.shape, dtype=np.int64)
    scales, zeros = [], []
    for row in reference_groups(*matrix.shape, scheme):
        scales.append([])
        zeros.append([])
        for places in row:
            values = np.array([matrix[place] for place in places], dtype=np.float32)
            low, high = min(values.min(), np.float32(0)), max(values.max(), np.float32(0))
            exact = max(high, -low) / np.float32(7) if scheme.symmetric else (high - low) / np.float32(15)
            scale = np.float32(torch.tensor(exact).to(weight.dtype).float().item())
            if low == high == 0:
                scale = np.float32(1)
            if scheme.symmetric:
                zero = 0
                found = [min(max(np.rint(value / scale), -8), 7) for value in values]
            else:
                zero = int(min(max(-np.rint(low / scale), 0), 15))
                found = [min(max(np.rint(value / scale) + zero, 0), 15) for value in values]
            for place, code in zip(places, found, strict=True):
                codes[place] = int(code)
            scales[-1].append(float(scale))
            zeros[-1].append(zero)
    return codes, scales, zeros


def check_against_reference(weight: Tensor, scheme: Scheme) -> None:
    quantized = quantize(weight, scheme)
    codes, scales, zeros = reference(weight, scheme)
    assert quantized.scales.dtype == weight.dtype
    assert quantized.scales.float().tolist() == scales
    assert np.array_equal(quantized.codes.numpy(), codes)
    if scheme.symmetric:
        assert quantized.zeros is None
    else:
        assert quantized.zeros is not None
        assert quantized.zeros.tolist() == zeros
    expected = np.zeros(codes.shape, dtype=np.float32)
    for row, places_of_row in enumerate(reference_groups(*codes.shape, scheme)):
        for column, places in enumerate(places_of_row):
            for place in places:
                expected[place] = np.float32(codes[place] - zeros[row][column]) * np.float32(scales[row][column])
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
        granularity=data.draw(st.sampled_from(["tensor", "channel", "group"])),
        group_size=data.draw(st.integers(1, 24)),
        symmetric=data.draw(st.booleans()),
    )
    check_against_reference(torch.tensor(values).reshape(num_rows, num_cols).to(dtype), scheme)


@pytest.mark.parametrize("scheme", SCHEMES, ids=str)
def test_error_is_at_most_half_a_step(scheme: Scheme) -> None:
    torch.manual_seed(3)
    weight = torch.randn(33, 130)
    error = (dequantize(quantize(weight, scheme)) - weight).abs()
    # The zero point rounds too, so an end of the range can be one step off at most.
    assert error.max() <= quantize(weight, scheme).scales.max() * (0.5001 if scheme.symmetric else 1.0001)


@pytest.mark.parametrize("scheme", SCHEMES, ids=str)
def test_zeros_stay_zero(scheme: Scheme) -> None:
    weight = torch.zeros(6, 300)
    weight[2, 5] = 1.0
    restored = dequantize(quantize(weight, scheme))
    assert torch.isfinite(restored).all()
    assert torch.equal(restored != 0, weight != 0)


@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("sign", [-1.0, 1.0])
def test_a_group_on_one_side_of_zero_survives(symmetric: bool, sign: float) -> None:
    weight = sign * torch.linspace(10.0, 11.0, 64).reshape(1, 64)
    restored = dequantize(quantize(weight, Scheme(symmetric=symmetric)))
    assert (restored - weight).abs().max() < 1.0


@pytest.mark.parametrize("symmetric", [False, True])
def test_extreme_ranges(symmetric: bool) -> None:
    huge = torch.tensor([[3.4e38, -3.4e38, 0.0]])
    tiny = torch.tensor([[1e-7, 0.0, -1e-7]], dtype=torch.float16)
    for weight in (huge, tiny):
        quantized = quantize(weight, Scheme(symmetric=symmetric))
        assert torch.isfinite(quantized.scales).all()
        assert (quantized.scales > 0).all()
        assert torch.sign(dequantize(quantized)).tolist() == torch.sign(weight).tolist()


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
def test_refuses_what_is_not_finite_by_name(bad: float) -> None:
    weight = torch.zeros(4, 4)
    weight[1, 2] = bad
    with pytest.raises(WeightError, match=r"^layers\.3\.weight: expected finite"):
        quantize(weight, Scheme(), name="layers.3.weight")


@pytest.mark.parametrize("bad", [torch.zeros(4), torch.zeros(0, 4), torch.zeros(2, 2, dtype=torch.int32)], ids=str)
def test_refuses_what_is_no_matrix_of_floats(bad: Tensor) -> None:
    with pytest.raises(WeightError, match="expected a floating tensor"):
        quantize(bad, Scheme())


@pytest.mark.parametrize(
    "fields",
    [{"granularity": "rows"}, {"group_size": 0}, {"group_size": True}, {"symmetric": 1}],
    ids=str,
)
def test_refuses_schemes_that_do_not_exist(fields: dict[str, object]) -> None:
    with pytest.raises(QuantpackError, match="expected"):
        Scheme(**fields)  # type: ignore[arg-type]


def test_group_size_matters_for_groups_only() -> None:
    assert Scheme(granularity="channel", group_size=64) == Scheme(granularity="channel")
