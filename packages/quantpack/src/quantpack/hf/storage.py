"""A weight that stays packed in a module's buffers."""

import torch
from torch import Tensor, nn

from quantpack.affine import dequantize
from quantpack.container.nibbles import packed_bytes
from quantpack.container.packed import PackedTensor, unpack_tensor
from quantpack.grouping import num_groups
from quantpack.scheme import Scheme


class PackedWeight(nn.Module):
    """A weight [O, I] as codes, two to a byte; what is in memory besides is made when it is asked for.

    Buffers, as in `PackedTensor`: `codes` uint8 [ceil(O * I / 2)]; `scale_bytes` uint8, the bytes of the scales
    [G]; `zeros` int8 [G] unless symmetric; `channel_blocks` uint8 [C] where the scheme has more than one block.

    Args:
        shape: O and I.
        scheme: How the weight was quantized.
        scale_dtype: Of the scales.
        dtype: Of the dequantized weight.
    """

    def __init__(self, shape: tuple[int, int], scheme: Scheme, *, scale_dtype: torch.dtype, dtype: torch.dtype) -> None:
        super().__init__()
        self.shape, self.scheme, self.scale_dtype = shape, scheme, scale_dtype
        groups = num_groups(*shape, scheme)
        num_channels = shape[0 if scheme.axis == "out" else 1]
        self.codes: Tensor
        self.scale_bytes: Tensor
        self.zeros: Tensor | None
        self.channel_blocks: Tensor | None
        self.register_buffer("codes", torch.empty(packed_bytes(shape[0] * shape[1]), dtype=torch.uint8))
        # As bytes, for a cast of the model must not round them.
        self.register_buffer("scale_bytes", torch.empty(groups * scale_dtype.itemsize, dtype=torch.uint8))
        self.register_buffer("zeros", None if scheme.symmetric else torch.empty(groups, dtype=torch.int8))
        one_block = len(scheme.layout()) == 1
        self.register_buffer("channel_blocks", None if one_block else torch.empty(num_channels, dtype=torch.uint8))
        # Empty: follows the model's casts, so that the dtype of the dequantized weight is known.
        self.like: Tensor
        self.register_buffer("like", torch.empty(0, dtype=dtype), persistent=False)

    @property
    def weight(self) -> Tensor:
        """The dequantized weight [O, I], made anew; some models look at its dtype or device."""
        return self.dequantized(self.like.dtype)

    def dequantized(self, dtype: torch.dtype) -> Tensor:
        """The weight [O, I] in `dtype`, as `quantpack.dequantize` gives it."""
        # What it makes in between belongs where the codes are.
        with self.codes.device:
            return dequantize(unpack_tensor(self.packed()), dtype)

    def packed(self) -> PackedTensor:
        """The weight as the pack holds it."""
        return PackedTensor(
            codes=self.codes,
            scales=self.scale_bytes.view(self.scale_dtype),
            zeros=self.zeros,
            channel_blocks=self.channel_blocks,
            shape=self.shape,
            scheme=self.scheme,
        )

    def extra_repr(self) -> str:
        """What is printed of the module."""
        return f"{self.shape[0]}, {self.shape[1]}, bits={self.scheme.bits}, granularity={self.scheme.granularity}"


def packed_buffers(packed: PackedTensor) -> dict[str, Tensor]:
    """The buffers of a module that holds this weight."""
    buffers = {
        "codes": packed.codes,
        "scale_bytes": packed.scales.view(torch.uint8),
        "zeros": packed.zeros,
        "channel_blocks": packed.channel_blocks,
    }
    return {name: tensor for name, tensor in buffers.items() if tensor is not None}
