"""How much attention tokens receive at one decoder layer, whatever kernel the layer itself runs on.

Shape legend: B rows, T tokens, D features, H heads, Q queries of a row, K keys, U units of a row.

The layer's own input norm and attention module make queries and keys (biases, grouped heads, norms of queries and
keys, rotary positions of any kind); only the function that would attend is ours. It sees the tokens of one
forward: keys that a cache holds from before are not among them.
"""

import copy
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from transformers import AttentionInterface

from stagetrain.errors import PoolingUnsupportedError

_NAME = "stagetrain_probe"


class _Asked(NamedTuple):
    """Rotated queries [B, H, T, d] and keys [B, G, K, d] of a layer, G dividing H, and the factor of their products."""

    queries: torch.Tensor
    keys: torch.Tensor
    scaling: float


def _ask(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: Any,
    scaling: float | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, _Asked]:
    """Hands out queries and keys in the place of attention weights; of the right shape, the output means nothing."""
    return query.transpose(1, 2), _Asked(query, key, query.shape[-1] ** -0.5 if scaling is None else scaling)


AttentionInterface.register(_NAME, _ask)


@torch.no_grad()
def attention_probabilities(
    layer: torch.nn.Module,
    hidden_states: torch.Tensor,
    position_embeddings: Any,
    attention_mask: torch.Tensor | None,
    query_columns: torch.Tensor,
) -> torch.Tensor:
    """Attention from chosen tokens to all tokens, in every head, before `layer` runs.

    Args:
        layer: A decoder layer with `input_layernorm` and `self_attn`.
        hidden_states: What the layer gets, [B, T, D].
        position_embeddings: Rotary tables of the layer.
        attention_mask: As the layer gets it: None (causal), [B, K] (1: real) or [B or 1, 1 or H, T, K], bool (True:
            may attend) or added to scores. Of keys only the last T count.
        query_columns: Tokens whose attention is wanted, [B, Q] int64.

    Returns:
        [B, H, Q, T] float32; zeros where a token may attend to nothing.

    Raises:
        PoolingUnsupportedError: The layer's attention cannot be asked, or the mask is none of these.
    """
    asked = _asked(layer, hidden_states, position_embeddings)
    allowed = allowed_keys(attention_mask, hidden_states.shape[:2], query_columns)
    return torch.stack(list(_heads(asked, allowed, query_columns)), 1)


@torch.no_grad()
def mean_attention(
    layer: torch.nn.Module,
    hidden_states: torch.Tensor,
    position_embeddings: Any,
    attention_mask: torch.Tensor | None,
    query_columns: torch.Tensor,
) -> torch.Tensor:
    """Mean over heads of `attention_probabilities`, [B, Q, T], one head in memory at a time."""
    asked = _asked(layer, hidden_states, position_embeddings)
    allowed = allowed_keys(attention_mask, hidden_states.shape[:2], query_columns)
    total = hidden_states.new_zeros(allowed.shape[0], *allowed.shape[2:], dtype=torch.float32)
    for head in _heads(asked, allowed, query_columns):
        total += head
    return total / asked.queries.shape[1]


def visual_scores(
    layer: torch.nn.Module,
    hidden_states: torch.Tensor,
    position_embeddings: Any,
    attention_mask: torch.Tensor | None,
    units: torch.Tensor,
    asking: torch.Tensor,
) -> torch.Tensor:
    """Attention that every visual token receives: mean over heads and over the tokens that ask for it.

    Those are the asking tokens that may attend to it, and the last token of its own unit, so that a unit without a
    question behind it has scores too. Padding never asks. A row's scores follow from that row alone.

    Args:
        layer: As in `attention_probabilities`, also the next three.
        hidden_states: [B, T, D].
        position_embeddings: Rotary tables.
        attention_mask: The layer's mask.
        units: Number of the unit of each token, [B, T] int64; below 0 for text.
        asking: Text tokens of questions, [B, T] bool.

    Returns:
        [B, T] float32; 0 for text.

    Raises:
        PoolingUnsupportedError: As `attention_probabilities`.
    """
    last = _last_of_units(units)
    wanted = asking & (units < 0) | last
    columns, real = _columns(wanted)
    attention = mean_attention(layer, hidden_states, position_embeddings, attention_mask, columns)
    allowed = allowed_keys(attention_mask, hidden_states.shape[:2], columns).any(1)
    # Padding may not attend to itself, or to nothing else.
    real = real & allowed.gather(2, columns[..., None])[..., 0]
    same = units.gather(1, columns)[..., None] == units[:, None]
    counts = allowed & real[..., None] & (~last.gather(1, columns)[..., None] | same) & (units >= 0)[:, None]
    total = (attention * counts).sum(1)
    return total / counts.sum(1).clamp(min=1)


def allowed_keys(mask: torch.Tensor | None, shape: torch.Size, query_columns: torch.Tensor) -> torch.Tensor:
    """Who of the tokens the chosen queries may attend to, bool [B, 1 or H, Q, T], from a mask in any of its forms.

    Args:
        mask: See `attention_probabilities`.
        shape: B and T.
        query_columns: [B, Q].

    Raises:
        PoolingUnsupportedError: The mask is none of the forms.
    """
    num_rows, num_tokens = shape
    if mask is not None and not (isinstance(mask, torch.Tensor) and mask.dim() in (2, 4)):
        got = f"{mask.dim()} dimensions" if isinstance(mask, torch.Tensor) else type(mask).__name__
        raise PoolingUnsupportedError(f"attention: expected a mask of 2 or 4 dimensions, or none, got {got}")
    if mask is not None and mask.dim() == 4:
        rows = mask[..., -num_tokens:].expand(num_rows, -1, -1, -1)
        rows = rows.take_along_dim(query_columns[:, None, :, None], 2)
        return rows if rows.dtype == torch.bool else rows > torch.finfo(rows.dtype).min / 2
    places = torch.arange(num_tokens, device=query_columns.device)
    causal = (places <= query_columns[..., None])[:, None]
    if mask is None:
        return causal
    real = mask[:, -num_tokens:].bool()
    return causal & real[:, None, None] & real.gather(1, query_columns)[:, None, :, None]


def _asked(layer: torch.nn.Module, hidden_states: torch.Tensor, position_embeddings: Any) -> _Asked:
    own: Any = getattr(layer, "self_attn", None)
    norm: Any = getattr(layer, "input_layernorm", None)
    if own is None or norm is None or not hasattr(own, "config"):
        raise PoolingUnsupportedError(
            f"attention: expected a layer with input_layernorm and self_attn, got {type(layer).__name__}"
        )
    # Copies of the shells alone: the model's own settings are never changed, not even for a moment.
    attention = copy.copy(own)
    attention.config = copy.copy(own.config)
    # Not by its property, which would reach into configurations that both share.
    attention.config._attn_implementation_internal = _NAME
    _, asked = attention(
        hidden_states=norm(hidden_states), position_embeddings=position_embeddings, attention_mask=None
    )
    if not isinstance(asked, _Asked):
        raise PoolingUnsupportedError(
            f"attention: expected {type(own).__name__} to use transformers' AttentionInterface, and it does not"
        )
    return asked


def _heads(asked: _Asked, allowed: torch.Tensor, columns: torch.Tensor) -> Iterator[torch.Tensor]:
    """Probabilities [B, Q, T] of one head after the other, float32."""
    num_heads, num_groups = asked.queries.shape[1], asked.keys.shape[1]
    for head in range(num_heads):
        queries = asked.queries[:, head].take_along_dim(columns[..., None], 1).float()
        keys = asked.keys[:, head * num_groups // num_heads].float()
        own = allowed[:, head if allowed.shape[1] > 1 else 0]
        products = (queries @ keys.transpose(1, 2) * asked.scaling).masked_fill(~own, -torch.inf)
        # A token that may attend to nothing: nan to 0.
        yield products.softmax(2).masked_fill(~own, 0.0)


def _last_of_units(units: torch.Tensor) -> torch.Tensor:
    """Which tokens are the last of their unit in their row, [B, T] bool."""
    places = torch.arange(units.shape[1], device=units.device).expand_as(units)
    # One more in front, where all text goes.
    numbers = units.clamp(min=-1) + 1
    last = places.new_zeros(len(units), int(numbers.max()) + 1).scatter_reduce(1, numbers, places, "amax")
    return (units >= 0) & (last.gather(1, numbers) == places)


def _columns(wanted: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Places of the wanted tokens of every row and which of them are not filling, [B, Q] both."""
    counts = wanted.sum(1)
    num_columns = max(1, int(counts.max()))
    columns = (~wanted).long().argsort(dim=1, stable=True)[:, :num_columns]
    return columns, torch.arange(num_columns, device=wanted.device) < counts[:, None]
