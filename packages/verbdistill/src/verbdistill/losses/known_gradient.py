"""A value whose gradient is computed with it, in one pass."""

from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable


class _KnownGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, value: Tensor, *inputs_and_gradients: Tensor) -> Tensor:
        """Inputs first, then the gradient of each; the value is handed on."""
        ctx.save_for_backward(*inputs_and_gradients[len(inputs_and_gradients) // 2 :])
        return value.clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, outer: Tensor) -> Any:
        gradients = ctx.saved_tensors
        return (None, *(gradient * outer.to(gradient.dtype) for gradient in gradients), *(None for _ in gradients))


def with_gradients(value: Tensor, inputs: Sequence[Tensor], gradients: Sequence[Tensor]) -> Tensor:
    """The scalar `value`, as a function of `inputs` that has these gradients there; differentiable once."""
    typed = [gradient.to(part.dtype) for part, gradient in zip(inputs, gradients, strict=True)]
    return cast(Tensor, _KnownGradient.apply(value, *inputs, *typed))
