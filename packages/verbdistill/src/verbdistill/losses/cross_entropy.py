"""Autoregressive loss of features under a head."""

import torch
from torch import Tensor
from torch.nn import functional as F

from verbdistill.errors import BatchError
from verbdistill.losses.chunks import DEFAULT_LOGITS_BYTES
from verbdistill.losses.fused import summed_loss
from verbdistill.losses.heads import Head

_ARRAYS = 3  # logits, log-probabilities, probabilities


def ar_loss(features: Tensor, head: Head, labels: Tensor, *, logits_bytes: int = DEFAULT_LOGITS_BYTES) -> Tensor:
    """Mean cross-entropy of the labels over tokens, nats, scalar (VLsI, Section 3.1).

    Args:
        features: What the head reads, [N, h].
        head: Its weight and bias get gradients if they require them.
        labels: Token ids, [N].
        logits_bytes: Room for everything with a vocabulary axis.

    Raises:
        BatchError: There is no token, another number of labels, or a label is no word of the head.
    """
    if labels.shape != features.shape[:1]:
        raise BatchError(f"labels: expected one for each of {len(features)} tokens, got shape {list(labels.shape)}")
    if len(labels) and not (int(labels.min()) >= 0 and int(labels.max()) < head.num_words):
        raise BatchError(
            f"labels: expected ids in 0..{head.num_words - 1}, got {int(labels.min())}..{int(labels.max())}"
        )

    def rule(chunk: slice, logits: Tensor) -> tuple[Tensor, Tensor]:
        log_p = F.log_softmax(logits, dim=-1)
        at = labels[chunk, None]
        losses = -log_p.gather(1, at).squeeze(1)
        gradient = torch.exp(log_p, out=logits)
        return losses, gradient.scatter_add_(1, at, gradient.new_full(at.shape, -1.0))

    return summed_loss(features, head, rule, num_arrays=_ARRAYS, logits_bytes=logits_bytes) / len(labels)
