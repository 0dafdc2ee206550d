"""One forward of a decoder in which tokens are compressed.

Shape legend: B rows, T tokens, P tokens after pooling, Q keys.
"""

from dataclasses import dataclass, field
from typing import Any, Self

import torch

from stagetrain.attaching import masks
from stagetrain.attaching.cache_layer import Keys
from stagetrain.attaching.pooling import PoolPlan, pool_positions
from stagetrain.errors import PoolingUnsupportedError
from stagetrain.families import Family, Layout


@dataclass(frozen=True, slots=True)
class Tokens:
    """What a model's arguments say of its tokens.

    Attributes:
        ids: [B, T].
        layout: Where the visual ones are.
        padding: Which are padding, [B, T] bool; None if that is not known.
        asking: Text of questions: neither padding nor, where there are labels, an answer, [B, T] bool.
    """

    ids: torch.Tensor
    layout: Layout
    padding: torch.Tensor | None
    asking: torch.Tensor

    @classmethod
    def of(cls, family: Family, model: Any, call: dict[str, Any]) -> Self:
        """Those of a call of a model of `family`.

        Raises:
            PoolingUnsupportedError: The call does not tell where the visual tokens are.
        """
        layout, labels = family.layout(model, call), call.get("labels")
        ids = call["input_ids"]
        padding = masks.padding_tokens(call.get("attention_mask"), ids.shape[1], labels)
        asking = ~layout.visual if padding is None else ~(layout.visual | padding)
        return cls(ids, layout, padding, asking if labels is None else asking & (labels == -100))


@dataclass(slots=True)
class Step:
    """State of one forward.

    Attributes:
        tokens: What the model's arguments said; None: all tokens are text.
        num_seen: Tokens before these.
        positions: Rotary positions, [B, T] or [3, B, T].
        mask: The mask that the decoder got; of rows packed by their positions alone one that says so.
        attention: Name of the decoder's attention.
        plan: What becomes of the tokens; from the compressing layer on.
        keys: What that layer and all deeper ones attend to.
        tables: Rotary tables of what is left, where the decoder has made others.
        pooled_masks: Pairs of a mask and its pooled form.
    """

    tokens: Tokens | None
    num_seen: int
    positions: torch.Tensor
    mask: Any
    attention: str
    plan: PoolPlan | None = None
    keys: Keys | None = None
    tables: Any = None
    pooled_masks: list[tuple[Any, Any]] = field(default_factory=list)

    @classmethod
    def begin(cls, tokens: Tokens | None, call: dict[str, Any], states: torch.Tensor, attention: str) -> Self:
        """The step of a decoder's call with embeddings `states` [B, T, D].

        Raises:
            PoolingUnsupportedError: Rows are packed in a way that flash attention alone knows.
        """
        cache, positions, mask = call.get("past_key_values"), call.get("position_ids"), call.get("attention_mask")
        num_seen = int(cache.get_seq_length()) if cache is not None else 0
        if positions is None:
            positions = torch.arange(num_seen, num_seen + states.shape[1], device=states.device)[None]
        packing = positions
        if positions.ndim == 3 and len(positions) == 4:
            # Of four components the first is for masks alone.
            packing, positions = positions[0], positions[1:]
        step = cls(tokens, num_seen, positions.expand(*positions.shape[:-2], *states.shape[:2]), mask, attention)
        if mask is None and cache is None and packing.ndim == 2:
            restarts = masks.restart_mask(packing)
            if restarts is not None and step.is_flash:
                raise PoolingUnsupportedError("pooling: expected a mask with flash attention, got packed positions")
            step.mask = None if restarts is None else step.as_bias(restarts, states.dtype)
        return step

    @property
    def groups(self) -> Any:
        """Units to compress."""
        return self.tokens.layout.groups if self.tokens is not None else ()

    @property
    def is_flash(self) -> bool:
        """Whether masks are 2-D ones of keys alone."""
        return "flash" in self.attention

    @property
    def pooled_positions(self) -> torch.Tensor:
        """Rotary positions of what is left, [..., B, P]."""
        assert self.plan is not None
        return pool_positions(self.positions, self.plan)

    def decide(self, plan: PoolPlan, past: Keys | None) -> Keys:
        """Takes a plan; gives all keys of the deep layers, those of earlier steps first."""
        num_new = plan.slots.shape[1]
        self.plan = plan
        self.keys = Keys(num_new, plan.last, plan.real)
        if past is not None:
            self.keys = past.extended(plan.last, plan.real, num_new)
        return self.keys

    def pooled_mask(self, original: Any) -> Any:
        """The pooled form of a mask; made once for all layers that share it.

        Raises:
            PoolingUnsupportedError: It is no mask that can be pooled.
        """
        for known, pooled in self.pooled_masks:
            if known is original:
                return pooled
        assert self.plan is not None
        assert self.keys is not None
        keys, mask = self.keys, masks.checked_mask(original, self.keys.num_tokens)
        if mask is None and not bool(keys.real.all()):
            mask = torch.ones_like(keys.real[:, :1], dtype=torch.int64).expand(-1, keys.num_tokens)
            mask = mask if self.is_flash else self._causal(None)
        if mask is not None and mask.ndim == 2:
            mask = masks.pool_padding_mask(mask, keys.columns, keys.real)
        elif mask is not None:
            mask = masks.pool_attention_mask(mask, self.plan, keys.columns, keys.real)
        self.pooled_masks.append((original, mask))
        return mask

    def decoder_mask(self, dtype: torch.dtype) -> Any:
        """The mask of what is left as the decoder takes it when it is to get no more than that.

        Raises:
            PoolingUnsupportedError: As `pooled_mask`.
        """
        assert self.plan is not None
        assert self.keys is not None
        num_new, num_keys, mask = self.plan.last.shape[1], self.keys.columns.shape[1], self.mask
        if mask is None and num_new == num_keys:
            # Without a mask positions that jump would be taken for packed rows.
            return self.keys.real.long()
        is_2d = mask is None or mask.ndim == 2
        if is_2d and num_new not in (1, num_keys) and not self.is_flash:
            # The decoder would count on from the number of tokens, and show each new key to all new tokens.
            mask = self.as_bias(self._causal(masks.checked_mask(mask, self.keys.num_tokens)), dtype)
        return self.pooled_mask(mask)

    def as_bias(self, mask: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        """A bool mask in the form that the decoder's attention takes."""
        if self.attention != "eager":
            return mask
        return torch.zeros_like(mask, dtype=dtype).masked_fill(~mask, torch.finfo(dtype).min)

    def _causal(self, padding: torch.Tensor | None) -> torch.Tensor:
        """Bool [B or 1, 1, T, keys] out of a 2-D padding mask."""
        assert self.plan is not None
        assert self.keys is not None
        causal = masks.causal_mask(self.plan.slots.shape[1], self.keys.num_tokens, self.keys.real.device)
        return causal if padding is None else causal & padding[:, None, None].bool()
