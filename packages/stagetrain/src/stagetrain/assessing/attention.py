"""Where the token that brings forth the answer looks, layer by layer (Figure 1, right).

Shape legend: B rows, T tokens of the longest prompt, N decoder layers, K kinds of tokens.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from stagetrain.attaching.attention_probe import mean_attention

KINDS = ("visual", "system", "rest")
"""Visual tokens; text before the first of them; everything else, the asking token itself included."""


@dataclass(frozen=True, slots=True)
class LayerAttention:
    """Attention of the last prompt token in one decoder layer, mean over heads and questions about images.

    Attributes:
        layer: Of the decoder, from 0.
        total: Summed over all tokens of a kind; the kinds sum to 1.
        per_token: Mean over the tokens of a kind; None for a kind that no prompt has.
    """

    layer: int
    total: dict[str, float]
    per_token: dict[str, float | None]


class AttentionMeter:
    """Adds up attention over the prompts that go through a model while `watching`."""

    def __init__(self, layers: Sequence[Any]) -> None:
        self._layers = list(layers)
        self._totals = torch.zeros(len(self._layers), len(KINDS), dtype=torch.float64)
        self._means = torch.zeros_like(self._totals)
        self._num_rows = 0
        self._num_with = torch.zeros(len(KINDS), dtype=torch.float64)

    @contextmanager
    def watching(self, visual: torch.Tensor, real: torch.Tensor) -> Iterator[None]:
        """Measures the first forward inside, that of a batch of left-padded prompts.

        Args:
            visual: Visual tokens, [B, T] bool.
            real: Tokens that are not padding, [B, T] bool.
        """
        members = kinds_of(visual, real)
        seen: set[int] = set()

        def measure(index: int, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            if index not in seen:
                seen.add(index)
                states = args[0] if args else kwargs["hidden_states"]
                self._add(index, states, kwargs, members)

        hooks = [
            layer.register_forward_pre_hook(lambda _, args, kwargs, i=index: measure(i, args, kwargs), with_kwargs=True)
            for index, layer in enumerate(self._layers)
        ]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()
        self._num_rows += len(visual)
        self._num_with += (members.sum(2) > 0).sum(0).double().cpu()

    def result(self) -> tuple[LayerAttention, ...]:
        """Means over everything measured, one for each layer; at least one prompt must have been."""
        totals = (self._totals / self._num_rows).tolist()
        means = (self._means / self._num_with.clamp(min=1)).tolist()
        present = (self._num_with > 0).tolist()
        return tuple(
            LayerAttention(
                layer,
                dict(zip(KINDS, total, strict=True)),
                {kind: value if has else None for kind, value, has in zip(KINDS, mean, present, strict=True)},
            )
            for layer, (total, mean) in enumerate(zip(totals, means, strict=True))
        )

    def _add(self, index: int, states: torch.Tensor, kwargs: dict[str, Any], members: torch.Tensor) -> None:
        last = torch.full((len(states), 1), states.shape[1] - 1, device=states.device)
        layer, mask = self._layers[index], kwargs.get("attention_mask")
        received = mean_attention(layer, states, kwargs["position_embeddings"], mask, last).double()
        sums = (received * members).sum(2)
        self._totals[index] += sums.sum(0).cpu()
        self._means[index] += (sums / members.sum(2).clamp(min=1)).sum(0).cpu()


def kinds_of(visual: torch.Tensor, real: torch.Tensor) -> torch.Tensor:
    """Which tokens are of which of KINDS, bool [B, K, T], from [B, T] each; padding is of none."""
    before = visual.cumsum(1) == 0
    visual, before = visual & real, before & real & visual.any(1, keepdim=True)
    return torch.stack([visual, before, real & ~visual & ~before], 1)
