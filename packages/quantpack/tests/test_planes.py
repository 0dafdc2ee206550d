import pytest
import torch

from quantpack.container.planes import DTYPES, join_planes, split_planes


@pytest.mark.parametrize("dtype", DTYPES.values(), ids=str)
@pytest.mark.parametrize("shape", [(), (0, 3), (1,), (7,), (3, 5, 2)], ids=str)
def test_every_bit_comes_back(dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    generator = torch.Generator().manual_seed(0)
    count = torch.Size(shape).numel() * dtype.itemsize
    raw = torch.randint(0, 2 if dtype == torch.bool else 256, (count,), dtype=torch.uint8, generator=generator)
    tensor = raw.view(dtype).reshape(shape)
    planes = split_planes(tensor)
    assert planes.numel() == count
    restored = join_planes(planes, dtype, shape)
    assert restored.shape == tensor.shape
    assert torch.equal(restored.reshape(-1).view(torch.uint8), raw)


def test_planes_hold_the_nth_byte_of_every_element() -> None:
    assert split_planes(torch.tensor([0x0102, 0x0304], dtype=torch.int16)).tolist() == [2, 4, 1, 3]
