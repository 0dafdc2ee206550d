"""A linear layer whose weight stays packed."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from quantpack.affine import dequantize
from quantpack.container.nibbles import packed_bytes
from quantpack.container.packed import PackedTensor, unpack_tensor
from quantpack.grouping import num_groups
from quantpack.scheme import Scheme


class PackedLinear(nn.Module):
    """y = x W^T + b with W [O, I] as codes, two to a byte; W is dequantized anew in every call.

    Buffers, as in `PackedTensor`: `codes` uint8 [ceil(O * I / 2)]; `scale_bytes` uint8, the bytes of the scales
    [G]; `zeros` int8 [G] unless symmetric; `channel_blocks` uint8 [C] where the scheme has more than one block.

    Args:
        in_features: I.
        out_features: O.
        scheme: How the weight was quantized.
        scale_dtype: Of the scales.
        bias: Whether there is one.
        dtype: Of bias and, by default, of the dequantized weight.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        scheme: Scheme,
        *,
        scale_dtype: torch.dtype,
        bias: bool,
        dtype: torch.dtype,
    ) -> None:
        super().__init__()
        self.in_features, self.out_features = in_features, out_features
        self.scheme, self.scale_dtype = scheme, scale_dtype
        groups = num_groups(out_features, in_features, scheme)
        num_channels = out_features if scheme.axis == "out" else in_features
        self.codes: Tensor
        self.scale_bytes: Tensor
        self.zeros: Tensor | None
        self.channel_blocks: Tensor | None
        self.register_buffer("codes", torch.empty(packed_bytes(out_features * in_features), dtype=torch.uint8))
        # As bytes, for a cast of the model must not round them.
        self.register_buffer("scale_bytes", torch.empty(groups * scale_dtype.itemsize, dtype=torch.uint8))
        self.register_buffer("zeros", None if scheme.symmetric else torch.empty(groups, dtype=torch.int8))
        one_block = len(scheme.layout()) == 1
        self.register_buffer("channel_blocks", None if one_block else torch.empty(num_channels, dtype=torch.uint8))
        self.bias = nn.Parameter(torch.empty(out_features, dtype=dtype)) if bias else None
        # Empty: follows the model's casts, so that the weight's dtype is known without a bias.
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
            shape=(self.out_features, self.in_features),
            scheme=self.scheme,
        )

    def forward(self, inputs: Tensor) -> Tensor:
        """Inputs [..., I] -> [..., O] in their dtype."""
        # A kernel that multiplies by codes takes the place of this line.
        return F.linear(inputs, self.dequantized(inputs.dtype), self.bias)

    def extra_repr(self) -> str:
        """What is printed of the layer."""
        shape = f"in_features={self.in_features}, out_features={self.out_features}, bias={self.bias is not None}"
        return f"{shape}, bits={self.scheme.bits}, granularity={self.scheme.granularity}"


def packed_buffers(packed: PackedTensor) -> dict[str, Tensor]:
    """The buffers of a PackedLinear that holds this weight."""
    buffers = {
        "codes": packed.codes,
        "scale_bytes": packed.scales.view(torch.uint8),
        "zeros": packed.zeros,
        "channel_blocks": packed.channel_blocks,
    }
    return {name: tensor for name, tensor in buffers.items() if tensor is not None}
