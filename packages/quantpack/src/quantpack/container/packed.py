"""A quantized tensor with its codes two a byte, as a pack stores them."""

from dataclasses import dataclass

import torch
from torch import Tensor

from quantpack.affine import QuantizedTensor, row_chunks
from quantpack.container.nibbles import codes_from_stored, pack_nibbles, stored_codes, unpack_nibbles
from quantpack.scheme import Scheme


@dataclass(frozen=True, kw_only=True, slots=True)
class PackedTensor:
    """The stored codes of a tensor, and what turns them back into weights.

    A code is `nibbles.codes_from_stored` of a stored value, a weight (code - zero) * scale.

    Attributes:
        codes: uint8 [ceil(O * I / 2)], re-centred codes of [O, I] row by row, a pair's first in the low half.
        scales: [G] in the source tensor's dtype, block after block.
        zeros: [G] int8, codes of weight 0; None when symmetric.
        channel_blocks: [C] uint8, the block of each channel; None where the scheme has one block.
        shape: The source tensor's shape; more than two dimensions are seen as [shape[0], the rest].
        scheme: How the codes were made.
    """

    codes: Tensor
    scales: Tensor
    zeros: Tensor | None
    channel_blocks: Tensor | None
    shape: tuple[int, ...]
    scheme: Scheme

    @property
    def matrix(self) -> tuple[int, int]:
        """O and I."""
        return self.shape[0], int(torch.Size(self.shape[1:]).numel())


def pack_tensor(quantized: QuantizedTensor) -> PackedTensor:
    """The codes re-centred and two a byte."""
    num_rows, num_cols = quantized.codes.shape
    codes = torch.empty(-(-num_rows * num_cols // 2), dtype=torch.uint8)
    for begin, end in row_chunks(num_rows, num_cols):
        packed = pack_nibbles(stored_codes(quantized, begin, end))
        codes[begin * num_cols // 2 :][: packed.numel()] = packed
    return PackedTensor(
        codes=codes,
        scales=quantized.scales,
        zeros=quantized.zeros,
        channel_blocks=quantized.channel_blocks,
        shape=quantized.shape,
        scheme=quantized.scheme,
    )


def unpack_tensor(packed: PackedTensor, name: str = "weight") -> QuantizedTensor:
    """Undoes `pack_tensor`.

    Raises:
        WeightError: The blocks do not hold the channels that the scheme gives them.
    """
    num_rows, num_cols = packed.matrix
    quantized = QuantizedTensor(
        codes=torch.empty(num_rows, num_cols, dtype=torch.int8),
        scales=packed.scales,
        zeros=packed.zeros,
        channel_blocks=packed.channel_blocks,
        shape=packed.shape,
        scheme=packed.scheme,
    )
    grid = quantized.grid(name)
    for begin, end in row_chunks(num_rows, num_cols):
        count = (end - begin) * num_cols
        stored = unpack_nibbles(packed.codes[begin * num_cols // 2 :][: -(-count // 2)], count).reshape(-1, num_cols)
        zeros = None if packed.zeros is None else grid.spread(packed.zeros, begin, end)
        quantized.codes[begin:end] = codes_from_stored(stored, zeros, packed.scheme.num_levels)
    return quantized
