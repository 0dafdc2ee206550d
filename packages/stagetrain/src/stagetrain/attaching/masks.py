"""Attention masks of pooled tokens.

Shape legend: B rows, T tokens, P of them after pooling, K keys of the tokens, Q pooled keys.
"""

from typing import Any

import torch

from stagetrain.attaching.pooling import PoolPlan
from stagetrain.errors import PoolingUnsupportedError


def pool_padding_mask(mask: torch.Tensor, columns: torch.Tensor, real: torch.Tensor) -> torch.Tensor:
    """Entries of a 2-D padding mask [B, K] at `columns` [B, Q], 0 where not real."""
    return mask.gather(1, columns) * real.to(mask.dtype)


def pool_attention_mask(mask: torch.Tensor, plan: PoolPlan, columns: torch.Tensor, real: torch.Tensor) -> torch.Tensor:
    """Who of the pooled tokens may attend to whom.

    Args:
        mask: Of the tokens, [B or 1, H, T, K]: bool (True: may attend) or what is added to scores.
        plan: How the T query tokens are pooled.
        columns: Key token that stands for each pooled key, [B, Q]; the last P are the plan's own.
        real: Which pooled keys are not padding, [B, Q].

    Returns:
        [B, H, P, Q], of the dtype of `mask`; padding attends to itself alone.
    """
    num_queries, num_keys = plan.last.shape[1], columns.shape[1]
    never, always = (False, True) if mask.dtype == torch.bool else (torch.finfo(mask.dtype).min, 0.0)
    rows = mask.expand(plan.last.shape[0], -1, -1, -1).take_along_dim(plan.last[:, None, :, None], 2)
    pooled = rows.take_along_dim(columns[:, None, None, :], 3)
    pooled = pooled.masked_fill(~real[:, None, None, :], never)
    place = torch.arange(num_keys, device=mask.device) - (num_keys - num_queries)
    own = place == torch.arange(num_queries, device=mask.device)[:, None]
    alone = torch.full_like(pooled, never).masked_fill(own, always)
    return torch.where(plan.real[:, None, :, None], pooled, alone)


def padding_tokens(mask: Any, num_tokens: int, labels: torch.Tensor | None) -> torch.Tensor | None:
    """Which of the last T tokens are padding, [B, T] bool; None: not known of any.

    Args:
        mask: A 2-D mask of keys, 0 at padding, or a 4-D one of tokens without a past, where padding is what attends
            to nothing else and nothing else attends to.
        num_tokens: T.
        labels: [B, T]; what has one, not -100, is never padding.
    """
    if not isinstance(mask, torch.Tensor) or (mask.ndim == 4 and mask.shape[2] != mask.shape[3]):
        return None
    if mask.ndim == 2:
        padding = mask[:, -num_tokens:] == 0
    else:
        allowed = mask[:, 0] if mask.dtype == torch.bool else mask[:, 0] > torch.finfo(mask.dtype).min / 2
        others = allowed & ~torch.eye(num_tokens, dtype=torch.bool, device=mask.device)
        padding = ~(others.any(1) | others.any(2))
    return padding if labels is None else padding & (labels == -100)


def causal_mask(num_queries: int, num_keys: int, device: torch.device) -> torch.Tensor:
    """Bool [1, 1, T, K] where the queries are the last of the keys."""
    ones = torch.ones(1, 1, num_queries, num_keys, dtype=torch.bool, device=device)
    return ones.tril(num_keys - num_queries)


def restart_mask(positions: torch.Tensor) -> torch.Tensor | None:
    """Bool [B, 1, T, T] of rows packed by positions [B, T] that restart; None where none does.

    transformers takes any jump in the positions of a call without mask and cache for the border of a packed row.
    """
    jumps = torch.nn.functional.pad(positions.diff(dim=1) != 1, (1, 0))
    if not bool(jumps.any()):
        return None
    segment = jumps.cumsum(1)
    same = segment[:, None, :, None] == segment[:, None, None, :]
    return same & causal_mask(positions.shape[1], positions.shape[1], positions.device)


def checked_mask(mask: Any, num_keys: int) -> torch.Tensor | None:
    """A mask that can be pooled.

    Raises:
        PoolingUnsupportedError: It is none, or not of as many keys.
    """
    if mask is None:
        return None
    if not isinstance(mask, torch.Tensor) or mask.ndim not in (2, 4):
        raise PoolingUnsupportedError(f"pooling: expected a mask tensor, got {type(mask).__name__}")
    if mask.shape[-1] != num_keys:
        raise PoolingUnsupportedError(f"pooling: expected a mask of {num_keys} keys, got {mask.shape[-1]}")
    return mask
