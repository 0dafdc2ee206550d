"""Where the parts of a Hugging Face vision-language model, or of a language model, are.

Found by what they are called, not by the model's class, so that models registered elsewhere work too. What would be
silently wrong is refused: a head whose logits the model changes afterwards, or one that is no plain matrix.
"""

from typing import Any, cast

from torch import nn

from verbdistill.errors import UnsupportedModelError
from verbdistill.losses.heads import Head

_DECODERS = ("model.language_model", "model.text_model", "model")
_NORMS = ("norm", "final_layernorm", "final_layer_norm")
_VISION_PARTS = ("model.vision_tower", "model.visual", "model.vision_model")
_PROJECTORS = ("model.multi_modal_projector", "model.visual.merger", "model.connector")

_LOGIT_CHANGES = ("final_logit_softcapping", "logit_scale", "logits_scaling", "lm_head_multiplier")
"""Configuration values that say what becomes of logits behind the head; 1 and none leave them as they are."""

_LOGIT_MASKERS = frozenset({"chameleon"})
"""Kinds of models that take words out of their logits without a setting that says so."""


def base_model(model: nn.Module) -> nn.Module:
    """The model below its language head (`model.model`): gives last_hidden_state, computes no logits."""
    return _part(model, "model")


def language_model(model: nn.Module) -> nn.Module:
    """The decoder: `model.model.language_model`, or `model.model` of a model of text alone."""
    for path in _DECODERS:
        found = _find(model, path)
        if found is not None and isinstance(getattr(found, "layers", None), nn.ModuleList):
            return found
    raise UnsupportedModelError(
        f"{type(model).__name__}: expected decoder layers in one of {', '.join(_DECODERS)}, got none"
    )


def decoder_layers(model: nn.Module) -> nn.ModuleList:
    """The decoder layers; entry i gives what is called layer i + 1 here."""
    layers = cast(nn.ModuleList, language_model(model).layers)
    if not len(layers):
        raise UnsupportedModelError(f"{type(model).__name__}: expected at least one decoder layer, got none")
    return layers


def final_norm(model: nn.Module) -> nn.Module:
    """The norm between the last decoder layer and the language head."""
    decoder = language_model(model)
    found = next((part for part in (_find(decoder, name) for name in _NORMS) if part is not None), None)
    if found is None:
        raise UnsupportedModelError(
            f"{type(model).__name__}: expected a final norm ({', '.join(_NORMS)}) in {type(decoder).__name__}, got none"
        )
    return found


def language_head(model: nn.Module) -> nn.Module:
    """The language head, hidden -> vocabulary."""
    head = _part(model, "lm_head")
    weight = getattr(head, "weight", None)
    if not isinstance(weight, nn.Parameter) or weight.ndim != 2 or not weight.is_floating_point():
        raise UnsupportedModelError(
            f"{type(model).__name__}: expected lm_head to be a matrix of floating-point numbers, got "
            f"{type(head).__name__}"
        )
    if hasattr(head, "base_layer"):
        raise UnsupportedModelError(
            f"{type(model).__name__}: expected lm_head without an adapter, got {type(head).__name__}: merge it first"
        )
    if weight.shape[1] != hidden_size(model):
        raise UnsupportedModelError(
            f"{type(model).__name__}: expected lm_head to read {hidden_size(model)} features, got {weight.shape[1]}"
        )
    _check_logits(model)
    return head


def head_of(model: nn.Module) -> Head:
    """The language head's own matrix and bias, not copies: gradients of both reach the model.

    Raises:
        UnsupportedModelError: The logits are not what this matrix gives.
    """
    head = cast(Any, language_head(model))
    return Head(head.weight, getattr(head, "bias", None))


def vision_part(model: nn.Module) -> nn.Module | None:
    """The vision tower; in Qwen2-VL its projector is part of it. None in a model of text alone."""
    return next((part for part in (_find(model, path) for path in _VISION_PARTS) if part is not None), None)


def projector(model: nn.Module) -> nn.Module | None:
    """What turns the tower's features into the decoder's; None where it is not known by its name."""
    return next((part for part in (_find(model, path) for path in _PROJECTORS) if part is not None), None)


def hidden_size(model: nn.Module) -> int:
    """Width of the decoder's hidden states."""
    return int(text_config(model).hidden_size)


def vocab_size(model: nn.Module) -> int:
    """Rows of the language head, padding included."""
    return head_of(model).num_words


def text_config(model: nn.Module) -> Any:
    """The decoder's configuration."""
    return cast(Any, language_model(model)).config


def _check_logits(model: nn.Module) -> None:
    configs = [text_config(model), getattr(model, "config", None)]
    for config in configs:
        for name in _LOGIT_CHANGES:
            value = getattr(config, name, None)
            if value not in (None, 1):
                raise UnsupportedModelError(
                    f"{type(model).__name__}: expected logits as lm_head gives them, got {name} {value}"
                )
        if getattr(config, "model_type", None) in _LOGIT_MASKERS:
            raise UnsupportedModelError(
                f"{type(model).__name__}: expected logits as lm_head gives them, got some that it masks"
            )


def _part(model: nn.Module, path: str) -> nn.Module:
    found = _find(model, path)
    if found is None:
        raise UnsupportedModelError(
            f"{type(model).__name__}: expected a language model with a head and {path}, got none"
        )
    return found


def _find(model: nn.Module, path: str) -> nn.Module | None:
    part: Any = model
    for name in path.split("."):
        part = getattr(part, name, None)
    return part if isinstance(part, nn.Module) else None
