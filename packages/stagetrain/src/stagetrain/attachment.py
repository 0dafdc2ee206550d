"""Compresses visual tokens before a decoder layer of a model, by hooks on that one model.

Hooks exist only while a setting is in force, so an inactive model is the plain model. Layers before K see
every token. At K the hidden states are compressed, and from there on every layer gets the mask, positions and
rotary tables of what is left: the decoder makes these once, for all its layers. With K = 0 the decoder itself
gets embeddings, positions and a mask of what is left.

With a KV cache, layer K's part of it remembers which tokens its keys stand for (`cache_layer`). A cache's
length goes on counting every token, and so do positions and masks that come from outside.
"""

import inspect
from dataclasses import dataclass, field
from typing import Any

import torch
from torch.utils.hooks import RemovableHandle
from transformers import DynamicCache

from stagetrain import masks, pooling
from stagetrain.attention_probe import visual_scores
from stagetrain.cache_layer import Keys, compressed_layer
from stagetrain.compressors import Compressor, Units, compressor_named, num_left
from stagetrain.errors import PoolingUnsupportedError, ScheduleError
from stagetrain.families import Family, Layout, family_of
from stagetrain.setting import CompressionSetting

MODULE_NAME = "visual_compressor"
"""Name of a learned compressor among the model's submodules."""

_MOST_TOKENS = 1024
"""Visual tokens of a unit that a learned compressor is made for where the model sets no limit."""

_Hooked = tuple[tuple[Any, ...], dict[str, Any]]


@dataclass(frozen=True, slots=True)
class _Call:
    """What the model's arguments say of the tokens.

    Attributes:
        ids: Tokens, [B, T].
        layout: Where the visual ones are.
        padding: Which are padding, [B, T] bool; None if that is not known.
        asking: Text of questions: neither padding nor, where there are labels, an answer, [B, T] bool.
    """

    ids: torch.Tensor
    layout: Layout
    padding: torch.Tensor | None
    asking: torch.Tensor


@dataclass(slots=True)
class _Step:
    """One forward of the decoder.

    Attributes:
        call: What the model's arguments said; None: all tokens are text.
        num_seen: Tokens before these.
        positions: Rotary positions, [..., B, T].
        mask: The mask that the decoder got.
        plan: What becomes of the tokens; from layer K on.
        keys: What layer K and all deeper ones attend to.
        tables: Rotary tables of what is left.
        masks: Pairs of a mask and its pooled form.
    """

    call: _Call | None
    num_seen: int
    positions: torch.Tensor
    mask: Any
    plan: pooling.PoolPlan | None = None
    keys: Keys | None = None
    tables: Any = None
    masks: list[tuple[Any, Any]] = field(default_factory=list)


class Attachment:
    """Handle on a model's compression; made by `attach`. One for a model.

    A KV cache belongs to the setting it was begun with.

    Args:
        model: The model.
        family: Its family.
        seed: Of what is drawn outside of training.
    """

    def __init__(self, model: Any, family: Family, seed: int) -> None:
        self.seed = seed
        self._model = model
        self._family = family
        self._decoder = family.decoder(model)
        self._hooks: list[RemovableHandle] = []
        self._setting: CompressionSetting | None = None
        self._compressor: Compressor | None = None
        self._call: _Call | None = None
        self._step: _Step | None = None

    @property
    def setting(self) -> CompressionSetting | None:
        """The setting in force."""
        return self._setting

    @property
    def compressor(self) -> Compressor | None:
        """The compressor in force."""
        return self._compressor

    @property
    def module(self) -> torch.nn.Module | None:
        """The learned part of a compressor that was set, a submodule of the model until `detach`."""
        module: torch.nn.Module | None = getattr(self._model, MODULE_NAME, None)
        return module

    def set(self, setting: CompressionSetting) -> None:
        """Compresses visual tokens from the next forward on.

        A learned compressor is made once and kept until `detach`.

        Raises:
            ScheduleError: The decoder has no such layer, no unit has as many tokens as `stride`, or a learned
                compressor is to act behind the first layer or was made for fewer slots.
        """
        compressor = self._checked(setting)
        self.clear()
        self._register_module(compressor, setting)
        self._setting, self._compressor = setting, compressor
        before, layers = self._hook, self._decoder.layers
        self._hooks = [
            before(self._model, self._before_model),
            before(self._model.model, self._before_base),
            before(self._decoder, self._before_decoder),
            self._decoder.register_forward_hook(self._after_decoder),
        ]
        if setting.layer:
            self._hooks.append(before(layers[setting.layer], self._before_compressing_layer))
        self._hooks += [before(deep, self._before_deep_layer) for deep in layers[setting.layer + bool(setting.layer) :]]

    def clear(self) -> None:
        """Stops compressing: the model is the plain one again."""
        for hook in self._hooks:
            hook.remove()
        self._hooks = []
        self._setting = self._compressor = self._call = self._step = None

    def detach(self) -> None:
        """Stops compressing and takes a learned compressor off the model."""
        self.clear()
        if self.module is not None:
            delattr(self._model, MODULE_NAME)

    def _checked(self, setting: CompressionSetting) -> Compressor:
        num_layers, most = len(self._decoder.layers), self._family.most_tokens(self._model)
        if setting.layer >= num_layers:
            raise ScheduleError(f"compression: expected a layer below {num_layers}, got {setting.layer}")
        if most is not None and setting.stride > most:
            raise ScheduleError(f"compression: expected a stride of at most {most} visual tokens, got {setting.stride}")
        compressor = compressor_named(setting.compressor)
        if compressor.is_learned and setting.layer:
            raise ScheduleError(f"compression: {setting.compressor}: expected layer 0, got {setting.layer}")
        return compressor

    def _register_module(self, compressor: Compressor, setting: CompressionSetting) -> None:
        if not compressor.is_learned:
            return
        slots = num_left(self._family.most_tokens(self._model) or _MOST_TOKENS, setting.stride)
        known = getattr(self.module, "num_slots", slots)
        if known < slots:
            raise ScheduleError(
                f"compression: {setting.compressor}: expected at most the {known} slots it was made for, got {slots}"
            )
        if self.module is None:
            embedding = self._model.get_input_embeddings().weight
            module = compressor.build(embedding.shape[1], slots)
            assert module is not None
            module.num_slots = slots  # type: ignore[assignment]
            module.train(self._model.training)
            self._model.add_module(MODULE_NAME, module.to(embedding.device, embedding.dtype))

    @staticmethod
    def _hook(module: torch.nn.Module, action: Any) -> RemovableHandle:
        """Calls `action` with a forward's arguments by their names; what it returns takes their place."""
        names = list(inspect.signature(type(module).forward).parameters)[1:]

        def hook(module: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> _Hooked | None:
            placed = names[: len(args)]
            changed = action(module, {**dict(zip(placed, args, strict=True)), **kwargs})
            # Reentrant checkpointing finds what needs a gradient among the arguments by place alone.
            return None if changed is None else (tuple(changed.pop(name) for name in placed), changed)

        return module.register_forward_pre_hook(hook, with_kwargs=True)

    def _before_model(self, module: Any, call: dict[str, Any]) -> dict[str, Any] | None:
        """Cuts the labels to the logits' length."""
        assert self._compressor is not None
        assert self._setting is not None
        if isinstance(call.get("logits_to_keep"), torch.Tensor):
            raise PoolingUnsupportedError("pooling: logits_to_keep: expected a number, got positions")
        self._call, labels = self._read(call), call.get("labels")
        groups = self._call.layout.groups
        if labels is None or not groups:
            return None
        counts = [(group, self._compressor.count(group.sides, self._setting.stride)) for group in groups]
        return {**call, "labels": pooling.pool_labels(labels, counts, self._call.padding)}

    def _before_base(self, module: Any, call: dict[str, Any]) -> None:
        if self._call is None or self._call.ids is not call.get("input_ids"):
            self._call = self._read(call)

    def _read(self, call: dict[str, Any]) -> _Call:
        layout, labels = self._family.layout(self._model, call), call.get("labels")
        ids = call["input_ids"]
        padding = masks.padding_tokens(call.get("attention_mask"), ids.shape[1], labels)
        asking = ~layout.visual if padding is None else ~(layout.visual | padding)
        return _Call(ids, layout, padding, asking if labels is None else asking & (labels == -100))

    def _before_decoder(self, module: Any, call: dict[str, Any]) -> dict[str, Any] | None:
        """Begins a step; with K = 0 all of it is done here."""
        states, cache = call.get("inputs_embeds"), call.get("past_key_values")
        states = module.embed_tokens(call["input_ids"]) if states is None else states
        num_seen = int(cache.get_seq_length()) if cache is not None else 0
        positions, own, self._call = call.get("position_ids"), self._call, None
        if positions is None:
            positions = torch.arange(num_seen, num_seen + states.shape[1], device=states.device)[None]
        packed = positions[0] if positions.ndim == 3 and len(positions) == 4 else positions
        # Of four components the first is for masks alone.
        rotary = positions[1:] if positions.ndim == 3 and len(positions) == 4 else positions
        rotary = rotary.expand(*rotary.shape[:-2], *states.shape[:2])
        self._step = _Step(own, num_seen, rotary, call.get("attention_mask"))
        assert self._setting is not None
        if cache is not None and num_seen:
            # Before any layer has taken tokens into a cache that a deeper one is going to refuse.
            compressed_layer(cache, self._setting, num_seen, len(states))
        restarts = None
        if self._step.mask is None and not num_seen and packed.ndim == 2:
            restarts = masks.restart_mask(packed)
            if restarts is not None and self._is_flash:
                raise PoolingUnsupportedError("pooling: expected a mask with flash attention, got packed positions")
        if self._setting.layer:
            return None
        return self._compress_embeddings(self._step, states, restarts, call)

    def _compress_embeddings(
        self, step: _Step, states: torch.Tensor, restarts: torch.Tensor | None, call: dict[str, Any]
    ) -> dict[str, Any] | None:
        """What the decoder gets in place of its arguments when all layers are deep."""
        cache = self._cache(call)
        if cache is None and (step.call is None or not step.call.layout.groups):
            return None
        mask = step.mask if restarts is None else self._as_bias(restarts, states)
        tables = self._decoder.rotary_emb(states, position_ids=step.positions) if self._needs_scores else None
        states = self._compress(step, states, mask, tables, cache)
        assert step.plan is not None
        assert step.keys is not None
        num_new, num_keys = step.plan.last.shape[1], step.keys.columns.shape[1]
        if mask is None and num_new == num_keys:
            # Positions that jump must not be taken for packed rows.
            mask = step.keys.real.long()
        elif num_new not in (1, num_keys) and not self._is_flash and (mask is None or mask.ndim == 2):
            # The decoder would count on from the number of tokens, and let new keys be seen too early.
            mask = self._pooled_mask(step, self._as_bias(self._causal(step, mask), states))
        else:
            mask = self._pooled_mask(step, mask)
        positions = pooling.pool_positions(step.positions, step.plan)
        replaced = {
            "inputs_embeds": states,
            "attention_mask": mask,
            "position_ids": positions,
            "past_key_values": cache,
        }
        return {**call, "input_ids": None, **replaced}

    def _before_compressing_layer(self, module: Any, call: dict[str, Any]) -> dict[str, Any] | None:
        """Compresses the hidden states, and makes what this and the deeper layers need."""
        step, states, cache = self._step, call["hidden_states"], call.get("past_key_values")
        assert self._setting is not None
        if cache is not None and len(cache.layers) < self._setting.layer:
            # Under gradient checkpointing layers leave the cache alone.
            cache = None
        if step is None or (cache is None and (step.call is None or not step.call.layout.groups)):
            return None
        states = self._compress(step, states, call.get("attention_mask"), call["position_embeddings"], cache)
        assert step.plan is not None
        step.tables = self._decoder.rotary_emb(states, position_ids=pooling.pool_positions(step.positions, step.plan))
        return self._before_deep_layer(module, {**call, "hidden_states": states})

    def _before_deep_layer(self, module: Any, call: dict[str, Any]) -> dict[str, Any] | None:
        step = self._step
        if step is None or step.plan is None:
            return None
        # Positions are for the rotary tables alone; flash attention would take their jumps for packed rows.
        call = {**call, "position_ids": None}
        if step.tables is not None:
            call["position_embeddings"] = step.tables
            call["attention_mask"] = self._pooled_mask(step, call.get("attention_mask"))
        return call

    def _after_decoder(self, module: Any, args: Any, output: Any) -> None:
        self._step = None

    def _compress(self, step: _Step, states: torch.Tensor, mask: Any, tables: Any, cache: Any) -> torch.Tensor:
        """States of what is left; completes the step."""
        assert self._compressor is not None
        assert self._setting is not None
        groups = step.call.layout.groups if step.call is not None else ()
        num_tokens = states.shape[1]
        checked = masks.checked_mask(mask, step.num_seen + num_tokens)
        scores = None
        if step.call is not None and groups and self._needs_scores:
            layer, layout = self._decoder.layers[self._setting.layer], step.call.layout
            scores = visual_scores(layer, states, tables, checked, layout.units, step.call.asking)
        pooled_units = []
        for group in groups:
            place = group.rows[:, None], group.columns
            units = Units(group.sides, states[place], None if scores is None else scores[place], self._generator)
            slots = self._compressor.assign(units, self._setting.stride)
            count = self._compressor.count(group.sides, self._setting.stride)
            learned = self.module(units, self._setting.stride) if self._compressor.is_learned and self.module else None
            pooled_units.append((group, slots, count, learned))
        padding = step.call.padding if step.call is not None else None
        step.plan = plan = pooling.plan_pooling(states, [unit[:3] for unit in pooled_units], padding)
        states = pooling.pool_states(states, plan)
        for group, slots, _, learned in pooled_units:
            if learned is not None:
                states = pooling.replace_states(states, plan, group, slots, learned)
        step.keys = self._extended(plan, cache, step.num_seen, num_tokens)
        return states

    def _extended(self, plan: pooling.PoolPlan, cache: Any, num_seen: int, num_tokens: int) -> Keys:
        """Keys of the deep layers after this forward; told to the cache."""
        assert self._setting is not None
        new = Keys(num_tokens, plan.last, plan.real)
        if cache is None:
            return new
        layer = compressed_layer(cache, self._setting, num_seen, len(plan.last))
        keys = new if layer.seen is None else layer.seen.extended(plan.last, plan.real, num_tokens)
        layer.announce(keys)
        return keys

    def _cache(self, call: dict[str, Any]) -> Any:
        """The cache that the decoder is going to use; made here where the decoder would make one."""
        cache, config = call.get("past_key_values"), self._decoder.config
        uses = call.get("use_cache")
        uses = getattr(config, "use_cache", False) if uses is None else uses
        if getattr(self._decoder, "gradient_checkpointing", False) and self._decoder.training:
            return None if cache is None or not cache.get_seq_length() else cache
        return DynamicCache(config=config) if cache is None and uses else cache

    def _pooled_mask(self, step: _Step, original: Any) -> Any:
        """The pooled form of a mask; made once for all layers that share it."""
        for known, pooled in step.masks:
            if known is original:
                return pooled
        assert step.plan is not None
        assert step.keys is not None
        keys, mask = step.keys, masks.checked_mask(original, step.keys.num_tokens)
        if mask is None and not bool(keys.real.all()):
            causal = masks.causal_mask(step.plan.slots.shape[1], keys.num_tokens, keys.real.device)
            mask = keys.real.new_ones(len(keys.real), keys.num_tokens).long() if self._is_flash else causal
        if mask is not None:
            two = mask.ndim == 2
            mask = (
                masks.pool_padding_mask(mask, keys.columns, keys.real)
                if two
                else masks.pool_attention_mask(mask, step.plan, keys.columns, keys.real)
            )
        step.masks.append((original, mask))
        return mask

    def _causal(self, step: _Step, padding: torch.Tensor | None) -> torch.Tensor:
        """Bool [B or 1, 1, T, K] out of a 2-D padding mask."""
        assert step.plan is not None
        assert step.keys is not None
        num_new, num_keys = step.plan.slots.shape[1], step.keys.num_tokens
        causal = masks.causal_mask(num_new, num_keys, step.keys.real.device)
        return causal if padding is None else causal & padding[:, None, None].bool()

    def _as_bias(self, mask: torch.Tensor, states: torch.Tensor) -> torch.Tensor:
        """A bool mask in the form that the decoder's attention takes."""
        if self._decoder.config._attn_implementation != "eager":
            return mask
        return torch.zeros_like(mask, dtype=states.dtype).masked_fill(~mask, torch.finfo(states.dtype).min)

    @property
    def _needs_scores(self) -> bool:
        return self._compressor is not None and self._compressor.needs_scores

    @property
    def _is_flash(self) -> bool:
        return "flash" in (self._decoder.config._attn_implementation or "")

    @property
    def _generator(self) -> torch.Generator | None:
        """None in training: what is drawn there follows torch's own random state."""
        return None if self._decoder.training else torch.Generator().manual_seed(self.seed)


def attach(model: Any, seed: int = 0) -> Attachment:
    """A handle that can compress visual tokens inside `model`; nothing changes until its `set`.

    Args:
        model: A model with its head, of a family in `stagetrain.families`.
        seed: Of what compressors draw outside of training.

    Raises:
        PoolingUnsupportedError: The model is of no family, or its decoder is not made of full attention with rotary
            positions.
    """
    return Attachment(model, family_of(model), seed)
