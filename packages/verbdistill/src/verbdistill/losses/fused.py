"""Head, loss and gradient of one set of features in one pass over chunks of tokens.

N response tokens, n of a chunk, h hidden size, V words.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from verbdistill.errors import BatchError
from verbdistill.losses.chunks import token_chunks
from verbdistill.losses.heads import Head, working_dtype
from verbdistill.losses.known_gradient import with_gradients

Rule = Callable[[slice, Tensor], tuple[Tensor, Tensor]]
"""Of a chunk's tokens and logits [n, V], which it may overwrite: (loss of every token [n], its gradient [n, V])."""


def summed_loss(features: Tensor, head: Head, rule: Rule, *, num_arrays: int, logits_bytes: int) -> Tensor:
    """Sum over tokens of a loss of their logits; differentiable in features, weight and bias, as they require it.

    Args:
        features: [N, h].
        head: Gives their logits.
        rule: The loss.
        num_arrays: Arrays [n, V] that exist at once, `rule`'s own included.
        logits_bytes: Room for them.

    Raises:
        BatchError: There is no token.
    """
    if len(features) == 0:
        raise BatchError("features: expected at least one response token, got none")
    inputs = [part for part in (features, head.weight, head.bias) if part is not None]
    wanted = [part.requires_grad and torch.is_grad_enabled() for part in inputs]
    with torch.no_grad():
        dtype = working_dtype(features)
        total = torch.zeros((), dtype=torch.float64, device=features.device)
        gradients = [
            torch.zeros_like(part, dtype=dtype) if want else None for part, want in zip(inputs, wanted, strict=True)
        ]
        chunks = token_chunks(
            len(features),
            num_words=head.num_words,
            num_arrays=num_arrays,
            itemsize=dtype.itemsize,
            logits_bytes=logits_bytes,
        )
        for chunk in chunks:
            total += _add_chunk(features[chunk].to(dtype), chunk, head, rule, gradients)
    pairs = [(part, gradient) for part, gradient in zip(inputs, gradients, strict=True) if gradient is not None]
    total = total.to(dtype)
    return with_gradients(total, *zip(*pairs, strict=True)) if pairs else total


def _add_chunk(features: Tensor, chunk: slice, head: Head, rule: Rule, gradients: list[Tensor | None]) -> Tensor:
    losses, d_logits = rule(chunk, head.logits(features))
    if gradients[0] is not None:
        gradients[0][chunk] = head.pull_back(d_logits)
    if gradients[1] is not None:
        gradients[1].addmm_(d_logits.T, features)
    if len(gradients) > 2 and gradients[2] is not None:
        gradients[2] += d_logits.sum(0)
    return losses.sum(dtype=torch.float64)
