"""Kept tensors as bytes that compress: the n-th byte of every element together.

Signs and exponents of trained weights repeat, mantissas do not; side by side, zstd finds neither.
"""

import torch
from torch import Tensor

DTYPES = {
    "BOOL": torch.bool,
    "U8": torch.uint8,
    "I8": torch.int8,
    "I16": torch.int16,
    "I32": torch.int32,
    "I64": torch.int64,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F32": torch.float32,
    "F64": torch.float64,
}
DTYPE_NAMES = {dtype: name for name, dtype in DTYPES.items()}


def split_planes(tensor: Tensor) -> Tensor:
    """Any tensor -> uint8 [bytes of it], plane after plane."""
    size = tensor.element_size()
    return tensor.reshape(-1).view(torch.uint8).reshape(-1, size).T.reshape(-1)


def join_planes(planes: Tensor, dtype: torch.dtype, shape: tuple[int, ...]) -> Tensor:
    """Undoes `split_planes`, bit for bit."""
    count = planes.numel() // dtype.itemsize
    return planes.reshape(dtype.itemsize, count).T.reshape(-1).view(dtype).reshape(shape)


def bytes_as_tensor(data: bytes | bytearray) -> Tensor:
    """A copy of `data` as uint8 [its length]."""
    # torch refuses to look at no bytes at all.
    return torch.frombuffer(bytearray(data), dtype=torch.uint8) if data else torch.empty(0, dtype=torch.uint8)
