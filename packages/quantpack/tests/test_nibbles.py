import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from quantpack import Scheme, quantize_tensor
from quantpack.container.nibbles import codes_from_stored, pack_nibbles, packed_bytes, stored_codes, unpack_nibbles


@given(st.lists(st.integers(0, 15), min_size=1, max_size=200))
def test_two_a_byte_low_half_first(values: list[int]) -> None:
    packed = pack_nibbles(torch.tensor(values, dtype=torch.int8))
    padded = [*values, 0]
    assert packed.tolist() == [padded[i] + 16 * padded[i + 1] for i in range(0, len(values), 2)]
    assert packed.numel() == packed_bytes(len(values))
    assert unpack_nibbles(packed, len(values)).tolist() == values


@pytest.mark.parametrize("symmetric", [False, True])
def test_stored_codes_are_centred_on_eight_and_come_back(symmetric: bool) -> None:
    torch.manual_seed(0)
    scheme = Scheme(group_size=16, symmetric=symmetric)
    weight = torch.randn(9, 50) + torch.randn(9, 1)
    weight[:, ::5] = 0.0
    quantized = quantize_tensor(weight, scheme)
    stored = stored_codes(quantized)
    assert (stored[:, ::5] == 8).all()
    assert stored.min() >= 0
    assert stored.max() <= 15
    zeros = None if quantized.zeros is None else quantized.grid().spread(quantized.zeros)
    assert torch.equal(codes_from_stored(stored, zeros, 16), quantized.codes)
    if quantized.zeros is not None:
        expected = [
            (int(code) - int(zero) + 8) % 16
            for code, zero in zip(quantized.codes.flatten(), zeros.flatten(), strict=True)
        ]
        assert stored.flatten().tolist() == expected
        assert torch.equal(stored_codes(quantized, recenter=False), quantized.codes)
