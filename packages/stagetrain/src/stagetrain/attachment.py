"""Pools visual tokens before a decoder layer of a Llava model, by hooks on that one model.

Hooks exist only while a stage is active, so an inactive model is the plain model. Layers before
`layer` see every token. At `layer` the hidden states are pooled, and from there on every layer gets
the mask, positions and rotary tables of the pooled tokens: the decoder makes these once, for all
its layers. With a KV cache, deep layers hold fewer keys than shallow ones. The cache's length is
read from layer 0, so decode positions go on counting every token; which keys the deep layers hold
is remembered for as long as the cache lives.
"""

import weakref
from dataclasses import dataclass, field
from typing import Any

import torch
from torch.utils.hooks import RemovableHandle
from transformers import LlavaForConditionalGeneration

from stagetrain import pooling
from stagetrain.errors import PoolingUnsupportedError, ScheduleError
from stagetrain.setting import CompressionSetting

_Call = tuple[tuple[Any, ...], dict[str, Any]]


@dataclass(frozen=True, slots=True)
class _Keys:
    """Keys that the deep layers see.

    Attributes:
        layer: First deep layer.
        length: Tokens they were made of.
        columns: Token standing for each key, [B, Q] int64.
        real: Which keys are not padding, [B, Q] bool.
    """

    layer: int
    length: int
    columns: torch.Tensor
    real: torch.Tensor


@dataclass(slots=True)
class _Deep:
    """What layers from `layer` on get in one forward instead of what the decoder made."""

    plan: pooling.PoolPlan
    keys: _Keys
    position_ids: torch.Tensor
    position_embeddings: Any
    masks: list[tuple[Any, Any]] = field(default_factory=list)

    def mask(self, original: Any) -> Any:
        """The pooled form of a mask; made once for all layers that share it."""
        for known, pooled in self.masks:
            if known is original:
                return pooled
        pooled = _pool_mask(original, self.plan, self.keys)
        self.masks.append((original, pooled))
        return pooled


class Attachment:
    """Handle on a model's pooling; made by `attach`. One for a model.

    A KV cache belongs to the setting it was begun with.
    """

    def __init__(self, model: LlavaForConditionalGeneration) -> None:
        self._model = model
        self._hooks: list[RemovableHandle] = []
        self._layer = 0
        self._stride = 1
        self._plan: pooling.PoolPlan | None = None
        self._planned_for: Any = None
        self._deep: _Deep | None = None
        self._caches: weakref.WeakKeyDictionary[Any, _Keys] = weakref.WeakKeyDictionary()

    def set(self, setting: CompressionSetting) -> None:
        """Compresses visual tokens from the next forward on.

        Raises:
            ScheduleError: The decoder has no such layer behind its first, or `stride` is below 1.
        """
        layers = self._model.model.language_model.layers
        layer, stride = setting.layer, setting.stride
        if not 1 <= layer < len(layers) or stride < 1:
            raise ScheduleError(
                f"pooling: expected a layer from 1 to {len(layers) - 1} and a stride of at least 1,"
                f" got {layer} and {stride}"
            )
        self.clear()
        self._layer, self._stride = layer, stride
        if stride == 1:
            return
        self._hooks = [
            self._model.register_forward_pre_hook(self._before_model, with_kwargs=True),
            self._model.model.register_forward_pre_hook(self._before_decoder, with_kwargs=True),
            layers[layer].register_forward_pre_hook(self._before_pooling_layer, with_kwargs=True),
        ]
        for deep in layers[layer + 1 :]:
            self._hooks.append(deep.register_forward_pre_hook(self._before_deep_layer, with_kwargs=True))

    def clear(self) -> None:
        """Stops pooling: the model is the plain one again."""
        for hook in self._hooks:
            hook.remove()
        self._hooks = []
        self._plan = self._planned_for = self._deep = None

    def detach(self) -> None:
        """Stops pooling and forgets every cache."""
        self.clear()
        self._caches.clear()

    def _before_model(self, module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> _Call | None:
        """Cuts the labels to the logits' length."""
        if isinstance(kwargs.get("logits_to_keep"), torch.Tensor):
            raise PoolingUnsupportedError("pooling: logits_to_keep: expected a number, got positions")
        plan = self._plan_call(args, kwargs)
        self._planned_for = _argument(args, kwargs, 0, "input_ids")
        if plan is None or kwargs.get("labels") is None:
            return None
        return args, {**kwargs, "labels": pooling.pool_labels(kwargs["labels"], plan)}

    def _before_decoder(self, module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        ids = _argument(args, kwargs, 0, "input_ids")
        if ids is None or ids is not self._planned_for:
            self._plan_call(args, kwargs)
        self._planned_for = None

    def _plan_call(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> pooling.PoolPlan | None:
        """Plan of this forward's tokens; None when none of them is visual."""
        ids, pixels = _argument(args, kwargs, 0, "input_ids"), _argument(args, kwargs, 1, "pixel_values")
        encoded = (kwargs.get("mm_encoder_outputs") or {}).get("image")
        if ids is None:
            raise PoolingUnsupportedError("pooling: expected input_ids to find the visual tokens by, got none")
        self._plan = None
        images = pixels if encoded is None else encoded.pooler_output
        if images is not None:
            visual = ids == self._model.config.image_token_id
            self._plan = pooling.plan_pooling(pooling.number_images(visual, len(images)), self._stride)
        return self._plan

    def _before_pooling_layer(self, module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> _Call | None:
        """Pools the hidden states, and makes what this and the deeper layers need."""
        self._deep = None
        states = _argument(args, kwargs, 0, "hidden_states")
        cache = kwargs.get("past_key_values")
        known = self._caches.get(cache) if cache is not None else None
        if self._plan is None and known is None:
            return None
        plan = self._plan or _no_pooling(states)
        keys = self._extend(known, cache, plan)
        positions = kwargs["position_ids"].expand(states.shape[0], -1)
        embeddings = kwargs["position_embeddings"]
        if self._plan is not None:
            states = pooling.pool_states(states, plan)
            positions = pooling.pool_positions(positions, plan)
            embeddings = self._model.model.language_model.rotary_emb(states, position_ids=positions)
        self._deep = _Deep(plan, keys, positions, embeddings)
        rest = {name: value for name, value in kwargs.items() if name != "hidden_states"}
        return self._before_deep_layer(module, (states, *args[1:]), rest)

    def _before_deep_layer(self, module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> _Call | None:
        if self._deep is None:
            return None
        return args, {
            **kwargs,
            "attention_mask": self._deep.mask(kwargs.get("attention_mask")),
            "position_ids": self._deep.position_ids,
            "position_embeddings": self._deep.position_embeddings,
        }

    def _extend(self, known: _Keys | None, cache: Any, plan: pooling.PoolPlan) -> _Keys:
        """Keys of the deep layers after this forward; remembered with the cache."""
        num_rows, num_new = plan.slots.shape
        if cache is None:
            return _Keys(self._layer, num_new, plan.last, plan.real)
        # Layer 0 has taken this forward's tokens already.
        seen = int(cache.get_seq_length(0)) - num_new
        if seen == 0 or known is None:
            past = torch.arange(seen, device=plan.last.device).expand(num_rows, -1)
            known = _Keys(self._layer, seen, past, torch.ones_like(past, dtype=torch.bool))
        if (known.layer, known.length, len(known.columns)) != (self._layer, seen, num_rows):
            raise PoolingUnsupportedError(
                f"pooling: expected a cache of {known.length} tokens in {len(known.columns)} rows pooled at layer"
                f" {known.layer}, got {seen} in {num_rows} at {self._layer}"
            )
        keys = _Keys(
            self._layer,
            seen + num_new,
            torch.cat([known.columns, plan.last + seen], 1),
            torch.cat([known.real, plan.real], 1),
        )
        self._caches[cache] = keys
        return keys


def attach(model: Any) -> Attachment:
    """A handle that can pool visual tokens inside `model`; nothing changes until its `set`.

    Raises:
        PoolingUnsupportedError: The model is no Llava, or its decoder is not made of full attention with rotary
            positions.
    """
    if not isinstance(model, LlavaForConditionalGeneration):
        raise PoolingUnsupportedError(
            f"pooling: expected a LlavaForConditionalGeneration, got {type(model).__name__}: use stages without pooling"
        )
    decoder = model.model.language_model
    kinds = set(getattr(decoder.config, "layer_types", None) or ["full_attention"])
    if not hasattr(decoder, "layers") or not hasattr(decoder, "rotary_emb") or kinds != {"full_attention"}:
        raise PoolingUnsupportedError(
            f"pooling: expected a decoder of full attention layers with rotary positions, got {type(decoder).__name__}"
        )
    return Attachment(model)


def _argument(args: tuple[Any, ...], kwargs: dict[str, Any], place: int, name: str) -> Any:
    return args[place] if len(args) > place else kwargs.get(name)


def _no_pooling(states: torch.Tensor) -> pooling.PoolPlan:
    images = torch.full(states.shape[:2], pooling.TEXT, device=states.device)
    return pooling.plan_pooling(images, 1)


def _pool_mask(mask: Any, plan: pooling.PoolPlan, keys: _Keys) -> Any:
    """The decoder's mask, None (causal) or a tensor, as the pooled tokens need it."""
    if mask is None:
        if bool(keys.real.all()):
            return None
        num_new = plan.slots.shape[1]
        mask = keys.real.new_ones(1, 1, num_new, keys.length).tril(keys.length - num_new)
    if not isinstance(mask, torch.Tensor) or mask.dim() not in (2, 4):
        raise PoolingUnsupportedError(f"pooling: expected a mask tensor, got {type(mask).__name__}")
    if mask.dim() == 2:
        return pooling.pool_padding_mask(mask, keys.columns, keys.real)
    return pooling.pool_attention_mask(mask, plan, keys.columns, keys.real)
