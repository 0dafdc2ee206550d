"""Codes as bytes: re-centred, two a byte."""

import torch
from torch import Tensor

from quantpack.affine import QuantizedTensor


def packed_bytes(num_codes: int) -> int:
    """Bytes of `num_codes` codes at two a byte."""
    return -(-num_codes // 2)


def pack_nibbles(values: Tensor) -> Tensor:
    """Values 0..15 in any shape -> uint8 [ceil(n / 2)], a pair's first in the low half, an odd end filled with 0."""
    flat = values.reshape(-1).to(torch.uint8)
    packed = flat[0::2].clone()
    packed[: flat.numel() // 2] |= flat[1::2] << 4
    return packed


def unpack_nibbles(packed: Tensor, num_codes: int) -> Tensor:
    """uint8 [ceil(n / 2)] -> int8 [n] with values 0..15; undoes `pack_nibbles`."""
    pairs = torch.stack((packed & 0x0F, packed >> 4), dim=-1)
    return pairs.reshape(-1)[:num_codes].to(torch.int8)


def stored_codes(
    quantized: QuantizedTensor, begin: int = 0, end: int | None = None, *, recenter: bool = True
) -> Tensor:
    """Codes of rows `begin` to `end` as they are stored: (code - zero + half) mod levels; weight 0 is always half.

    Groups with different zeros then share one distribution, which compresses better.

    Args:
        quantized: Codes and zeros.
        begin: The first row.
        end: After the last row; None: all.
        recenter: False leaves asymmetric codes as they are; only comparisons use it.
    """
    end = quantized.codes.shape[0] if end is None else end
    codes, levels = quantized.codes[begin:end], quantized.scheme.num_levels
    if quantized.zeros is None:
        return codes + levels // 2
    if not recenter:
        return codes
    return (codes - quantized.grid().spread(quantized.zeros, begin, end) + levels // 2) & (levels - 1)


def codes_from_stored(stored: Tensor, zeros: Tensor | None, num_levels: int) -> Tensor:
    """Undoes `stored_codes`; zeros spread to every weight, None when symmetric."""
    if zeros is None:
        return stored - num_levels // 2
    return (stored + zeros - num_levels // 2) & (num_levels - 1)
