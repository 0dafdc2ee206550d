"""Linear layers whose weight stays packed."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from quantpack.hf.embedding import PackedEmbedding
from quantpack.hf.storage import PackedWeight
from quantpack.scheme import Scheme


class PackedLinear(PackedWeight):
    """y = x W^T + b; W is dequantized anew in every call.

    Args:
        shape: O and I of the weight.
        scheme: How the weight was quantized.
        scale_dtype: Of the scales.
        bias: Whether there is one.
        dtype: Of the bias and, where nobody says otherwise, of the dequantized weight.
    """

    def __init__(
        self, shape: tuple[int, int], scheme: Scheme, *, scale_dtype: torch.dtype, bias: bool, dtype: torch.dtype
    ) -> None:
        super().__init__(shape, scheme, scale_dtype=scale_dtype, dtype=dtype)
        self.out_features, self.in_features = shape
        self.bias = nn.Parameter(torch.empty(shape[0], dtype=dtype)) if bias else None

    def forward(self, inputs: Tensor) -> Tensor:
        """Inputs [..., I] -> [..., O] in their dtype."""
        # A kernel that multiplies by codes takes the place of this line.
        return F.linear(inputs, self.dequantized(inputs.dtype), self.bias)

    def extra_repr(self) -> str:
        """What is printed of the layer."""
        return f"{super().extra_repr()}, bias={self.bias is not None}"


class TiedLinear(nn.Module):
    """y = x W^T + b with the W of a packed embedding: the output head of a model that ties the two.

    Args:
        table: The embedding. Not a submodule, or its tensors would have two names.
        bias: Of an ordinary head, taken over.
    """

    def __init__(self, table: PackedEmbedding, bias: nn.Parameter | None) -> None:
        super().__init__()
        self._table = (table,)
        self.out_features, self.in_features = table.shape
        self.bias = bias

    @property
    def table(self) -> PackedEmbedding:
        """The embedding."""
        return self._table[0]

    @property
    def weight(self) -> Tensor:
        """The dequantized weight [O, I], made anew."""
        return self.table.weight

    def forward(self, inputs: Tensor) -> Tensor:
        """Inputs [..., I] -> [..., O] in their dtype."""
        return F.linear(inputs, self.table.dequantized(inputs.dtype), self.bias)
