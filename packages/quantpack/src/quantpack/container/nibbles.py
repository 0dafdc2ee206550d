"""4-bit codes as bytes: re-centred, two a byte."""

import torch
from torch import Tensor

from quantpack.affine import QuantizedTensor
from quantpack.grouping import spread
from quantpack.scheme import NUM_LEVELS

_CENTER = NUM_LEVELS // 2


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


def stored_codes(quantized: QuantizedTensor, *, recenter: bool = True) -> Tensor:
    """Codes [O, I] as they are stored, 0..15: (code - zero + 8) mod 16, so that weight 0 is always 8.

    Groups with different zeros then share one distribution, which compresses better.

    Args:
        quantized: Codes and zeros.
        recenter: False leaves asymmetric codes as they are; only comparisons use it.
    """
    codes = quantized.codes
    if quantized.zeros is None:
        return codes + _CENTER
    if not recenter:
        return codes
    zeros = spread(quantized.zeros, codes.shape[0], codes.shape[1], quantized.scheme)
    return (codes - zeros + _CENTER) & (NUM_LEVELS - 1)


def codes_from_stored(stored: Tensor, zeros: Tensor | None) -> Tensor:
    """Undoes `stored_codes`; zeros spread to every weight, None when symmetric."""
    if zeros is None:
        return stored - _CENTER
    return (stored + zeros - _CENTER) & (NUM_LEVELS - 1)
