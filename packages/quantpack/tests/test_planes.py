import math

import numpy as np
import pytest
import torch

from quantpack.container.frames import compress_pieces
from quantpack.container.planes import DTYPES, as_bytes, join_planes, split_planes


@pytest.mark.parametrize("dtype", DTYPES.values(), ids=str)
@pytest.mark.parametrize("shape", [(), (0, 3), (1,), (7,), (3, 5, 2)], ids=str)
def test_every_bit_comes_back(dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    generator = torch.Generator().manual_seed(0)
    count = torch.Size(shape).numel() * dtype.itemsize
    raw = torch.randint(0, 2 if dtype == torch.bool else 256, (count,), dtype=torch.uint8, generator=generator)
    planes = split_planes(as_bytes(raw.view(dtype).reshape(shape)), dtype)
    assert [len(plane) for plane in planes] == [math.prod(shape)] * dtype.itemsize
    target = np.empty(count, dtype=np.uint8)
    join_planes(np.frombuffer(b"".join(planes), dtype=np.uint8), dtype, target)
    assert target.tolist() == raw.tolist()


def test_integers_are_split_byte_by_byte() -> None:
    planes = split_planes(as_bytes(torch.tensor([0x0102, 0x0304], dtype=torch.int16)), torch.int16)
    assert [bytes(plane) for plane in planes] == [b"\x02\x04", b"\x01\x03"]


@pytest.mark.parametrize(("dtype", "bias"), [(torch.bfloat16, 127), (torch.float32, 127)])
def test_the_last_plane_is_the_exponent(dtype: torch.dtype, bias: int) -> None:
    values = torch.tensor([1.0, -1.0, 1.75, -3.0, 0.25, 0.0], dtype=dtype)
    exponents = split_planes(as_bytes(values), dtype)[-1]
    assert list(exponents) == [bias, bias, bias, bias + 1, bias - 2, 0]


def test_a_transposed_tensor_is_read_in_its_own_order() -> None:
    tensor = torch.arange(6, dtype=torch.int8).reshape(2, 3).T
    assert as_bytes(tensor).tolist() == [0, 3, 1, 4, 2, 5]


def test_gaussian_bfloat16_shrinks_to_its_exponents_entropy() -> None:
    tensor = torch.randn(1 << 18, generator=torch.Generator().manual_seed(0)).to(torch.bfloat16)
    planes = split_planes(as_bytes(tensor), torch.bfloat16)
    counts = np.bincount(planes[1], minlength=256)
    shares = counts[counts > 0] / tensor.numel()
    least = tensor.numel() * (1 - (shares * np.log2(shares)).sum() / 8)
    size = len(compress_pieces(planes, 2 * tensor.numel()))
    assert least < size < 1.01 * least
    assert 2 * tensor.numel() / size > 1.49
