"""Kept tensors as bytes that compress: exponents apart from signs and mantissas.

Exponents of trained weights repeat, mantissas do not; side by side, zstd finds neither. Rotated left by one bit a
floating number starts with its exponent: all of it in the first byte of bfloat16, float32 and, for its largest part,
float16 and float64. Then the n-th byte of every element is one plane.
"""

from typing import Any

import numpy as np
import numpy.typing as npt
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
# Little-endian, as in the file, whatever the machine.
_WORDS: dict[int, np.dtype[Any]] = {1: np.dtype("u1"), 2: np.dtype("<u2"), 4: np.dtype("<u4"), 8: np.dtype("<u8")}


def as_bytes(tensor: Tensor) -> npt.NDArray[np.uint8]:
    """The tensor's memory, uint8 [bytes of it]; not copied where it lies in one piece."""
    return tensor.detach().reshape(-1).view(torch.uint8).numpy()


def split_planes(data: npt.NDArray[np.uint8], dtype: torch.dtype) -> list[memoryview]:
    """Bytes of whole elements -> their planes, lowest byte first."""
    size = dtype.itemsize
    words = data.view(_WORDS[size])
    if _is_rotated(dtype):
        words = (words << 1) | (words >> (8 * size - 1))
    # Shifting whole words is several times as fast as picking every second byte.
    return [(words >> (8 * number)).astype(np.uint8).data for number in range(size)]


def join_planes(planes: npt.NDArray[np.uint8], dtype: torch.dtype, target: npt.NDArray[np.uint8]) -> None:
    """Undoes `split_planes`: planes one after the other -> bytes of the elements, bit for bit.

    Args:
        planes: uint8 [bytes of the elements].
        dtype: Theirs.
        target: uint8 of the same length, written over.
    """
    size = dtype.itemsize
    columns = planes.reshape(size, -1)
    words = columns[size - 1].astype(_WORDS[size])
    for column in columns[size - 2 :: -1] if size > 1 else ():
        words <<= 8
        words |= column
    if _is_rotated(dtype):
        lowest = words << (8 * size - 1)
        words >>= 1
        words |= lowest
    target.view(_WORDS[size])[:] = words


def _is_rotated(dtype: torch.dtype) -> bool:
    return dtype.is_floating_point and dtype.itemsize > 1
