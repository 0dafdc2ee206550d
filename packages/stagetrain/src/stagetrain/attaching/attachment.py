"""Compresses visual tokens before a decoder layer of a model, by hooks on that one model.

Hooks exist only while a setting is in force, so an inactive model is the plain model. Layers before K see
every token. At K the hidden states are compressed, and from there on every layer gets the mask, positions and
rotary tables of what is left: the decoder makes these once, for all its layers. With K = 0 the decoder itself
gets embeddings, positions and a mask of what is left.

With a KV cache, layer K's part of it remembers which tokens its keys stand for (`cache_layer`). A cache's
length goes on counting every token, and so do positions and masks that come from outside.
"""

import inspect
from typing import Any

import torch
from torch.utils.hooks import RemovableHandle
from transformers import DynamicCache

from stagetrain.attaching import masks, pooling
from stagetrain.attaching.attention_probe import visual_scores
from stagetrain.attaching.cache_layer import compressed_layer
from stagetrain.attaching.step import Step, Tokens
from stagetrain.compressors import Compressor, Units, compressor_named, num_left
from stagetrain.errors import PoolingUnsupportedError, ScheduleError
from stagetrain.families import Family, family_of
from stagetrain.schedules.setting import CompressionSetting

MODULE_NAME = "visual_compressor"
"""Name of a learned compressor among the model's submodules."""

_MOST_TOKENS = 1024
"""Visual tokens of a unit that a learned compressor is made for where the model sets no limit."""

_Call = dict[str, Any]


class Attachment:
    """Handle on a model's compression; made by `attach`. One for a model.

    A KV cache belongs to the setting it was begun with.

    Args:
        model: The model.
        family: Its family.
        seed: Of what is drawn outside of training; in training torch's own random state is.
    """

    def __init__(self, model: Any, family: Family, seed: int) -> None:
        self.seed = seed
        self._model = model
        self._family = family
        self._decoder = family.decoder(model)
        self._hooks: list[RemovableHandle] = []
        self._active: _Active | None = None

    @property
    def setting(self) -> CompressionSetting | None:
        """The setting in force."""
        return None if self._active is None else self._active.setting

    @property
    def compressor(self) -> Compressor | None:
        """The compressor in force."""
        return None if self._active is None else self._active.compressor

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
        self._active = active = _Active(self, setting, compressor)
        layers = self._decoder.layers
        self._hooks = [
            _before(self._model, active.before_model),
            _before(self._model.model, active.before_base),
            _before(self._decoder, active.before_decoder),
            self._decoder.register_forward_hook(active.after_decoder),
        ]
        if setting.layer:
            self._hooks.append(_before(layers[setting.layer], active.before_compressing_layer))
        first_deep = setting.layer + 1 if setting.layer else 0
        self._hooks += [_before(layer, active.before_deep_layer) for layer in layers[first_deep:]]

    def clear(self) -> None:
        """Stops compressing: the model is the plain one again."""
        for hook in self._hooks:
            hook.remove()
        self._hooks, self._active = [], None

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
            module.train(self._model.training)
            self._model.add_module(MODULE_NAME, module.to(embedding.device, embedding.dtype))


class _Active:
    """A setting in force: what its hooks do, and what they tell each other in the course of a forward."""

    def __init__(self, attachment: Attachment, setting: CompressionSetting, compressor: Compressor) -> None:
        self.setting = setting
        self.compressor = compressor
        self._attachment = attachment
        self._model, self._family = attachment._model, attachment._family
        self._decoder = attachment._decoder
        self._tokens: Tokens | None = None
        self._step: Step | None = None

    def before_model(self, module: Any, call: _Call) -> _Call | None:
        """Cuts the labels to the logits' length."""
        if isinstance(call.get("logits_to_keep"), torch.Tensor):
            raise PoolingUnsupportedError("pooling: logits_to_keep: expected a number, got positions")
        self._tokens, labels = Tokens.of(self._family, self._model, call), call.get("labels")
        groups = self._tokens.layout.groups
        if labels is None or not groups:
            return None
        counts = [(group, self.compressor.count(group.sides, self.setting.stride)) for group in groups]
        return {**call, "labels": pooling.pool_labels(labels, counts, self._tokens.padding)}

    def before_base(self, module: Any, call: _Call) -> None:
        """Reads a call that did not come through the model with the head."""
        if self._tokens is None or self._tokens.ids is not call.get("input_ids"):
            self._tokens = Tokens.of(self._family, self._model, call)

    def before_decoder(self, module: Any, call: _Call) -> _Call | None:
        """Begins a step; with K = 0 all of it is done here."""
        states, cache = call.get("inputs_embeds"), self._cache(call)
        states = module.embed_tokens(call["input_ids"]) if states is None else states
        tokens, self._tokens = self._tokens, None
        attention = self._decoder.config._attn_implementation or ""
        self._step = step = Step.begin(tokens, {**call, "past_key_values": cache}, states, attention)
        if cache is not None and step.num_seen:
            # Before any layer has taken tokens into a cache that a deeper one is going to refuse.
            compressed_layer(cache, self.setting, step.num_seen, len(states))
        if self.setting.layer or (cache is None and not step.groups):
            return None
        needs_tables = self.compressor.needs_scores
        tables = self._decoder.rotary_emb(states, position_ids=step.positions) if needs_tables else None
        states = self._compress(step, states, step.mask, tables, cache)
        replaced = {"inputs_embeds": states, "position_ids": step.pooled_positions, "past_key_values": cache}
        return {**call, "input_ids": None, **replaced, "attention_mask": step.decoder_mask(states.dtype)}

    def before_compressing_layer(self, module: Any, call: _Call) -> _Call | None:
        """Compresses the hidden states, and makes what this and the deeper layers need."""
        step, states, cache = self._step, call["hidden_states"], call.get("past_key_values")
        if cache is not None and len(cache.layers) < self.setting.layer:
            # Under gradient checkpointing layers leave the cache alone.
            cache = None
        if step is None or (cache is None and not step.groups):
            return None
        states = self._compress(step, states, call.get("attention_mask"), call["position_embeddings"], cache)
        step.tables = self._decoder.rotary_emb(states, position_ids=step.pooled_positions)
        return self.before_deep_layer(module, {**call, "hidden_states": states})

    def before_deep_layer(self, module: Any, call: _Call) -> _Call | None:
        """Gives a layer what belongs to the tokens that are left."""
        step = self._step
        if step is None or step.plan is None:
            return None
        # Positions are for the rotary tables alone; flash attention would take their jumps for packed rows.
        call = {**call, "position_ids": None}
        if step.tables is not None:
            call["position_embeddings"] = step.tables
            call["attention_mask"] = step.pooled_mask(call.get("attention_mask"))
        return call

    def after_decoder(self, module: Any, args: Any, output: Any) -> None:
        """Ends the step."""
        self._step = None

    def _compress(self, step: Step, states: torch.Tensor, mask: Any, tables: Any, cache: Any) -> torch.Tensor:
        """States of what is left; completes the step and tells the cache."""
        stride, compressor = self.setting.stride, self.compressor
        mask = masks.checked_mask(mask, step.num_seen + states.shape[1])
        scores = None
        if step.tokens is not None and compressor.needs_scores:
            layer, tokens = self._decoder.layers[self.setting.layer], step.tokens
            scores = visual_scores(layer, states, tables, mask, tokens.layout.units, tokens.asking)
        planned, learned = [], []
        for group in step.groups:
            place = group.rows[:, None], group.columns
            units = Units(group.sides, states[place], None if scores is None else scores[place], self._generator)
            slots = compressor.assign(units, stride)
            planned.append((group, slots, compressor.count(group.sides, stride)))
            if compressor.is_learned:
                assert self._attachment.module is not None
                learned.append((group, slots, self._attachment.module(units, stride)))
        padding = step.tokens.padding if step.tokens is not None else None
        plan = pooling.plan_pooling(states, planned, padding)
        held = None if cache is None else compressed_layer(cache, self.setting, step.num_seen, len(states))
        keys = step.decide(plan, None if held is None else held.seen)
        if held is not None:
            held.announce(keys)
        states = pooling.pool_states(states, plan)
        for group, slots, own in learned:
            states = pooling.replace_states(states, plan, group, slots, own)
        return states

    def _cache(self, call: _Call) -> Any:
        """The cache that the decoder is going to use; made here where the decoder would make one."""
        cache, uses = call.get("past_key_values"), call.get("use_cache")
        uses = getattr(self._decoder.config, "use_cache", False) if uses is None else uses
        if getattr(self._decoder, "gradient_checkpointing", False) and self._decoder.training:
            return cache if cache is not None and cache.get_seq_length() else None
        return DynamicCache(config=self._decoder.config) if cache is None and uses else cache

    @property
    def _generator(self) -> torch.Generator | None:
        return None if self._decoder.training else torch.Generator().manual_seed(self._attachment.seed)


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


def _before(module: torch.nn.Module, action: Any) -> RemovableHandle:
    """Calls `action` with a forward's arguments by their names; what it returns takes their place."""
    names = list(inspect.signature(type(module).forward).parameters)[1:]

    def hook(module: torch.nn.Module, args: tuple[Any, ...], kwargs: _Call) -> tuple[tuple[Any, ...], _Call] | None:
        placed = names[: len(args)]
        changed = action(module, {**dict(zip(placed, args, strict=True)), **kwargs})
        # Reentrant checkpointing finds what needs a gradient among the arguments by place alone.
        return None if changed is None else (tuple(changed.pop(name) for name in placed), changed)

    return module.register_forward_pre_hook(hook, with_kwargs=True)
