"""Where the parts of a Llava-like model are."""

from typing import Any, cast

from torch import nn

from verbdistill.errors import UnsupportedModelError


def base_model(model: nn.Module) -> nn.Module:
    """The model below its language head (`model.model`): gives last_hidden_state, computes no logits."""
    return _part(model, "model")


def language_model(model: nn.Module) -> nn.Module:
    """The decoder, `model.model.language_model`."""
    return _part(model, "model.language_model")


def decoder_layers(model: nn.Module) -> nn.ModuleList:
    """The decoder layers; entry i gives what is called layer i + 1 here."""
    layers = _part(model, "model.language_model.layers")
    if not isinstance(layers, nn.ModuleList) or not len(layers):
        raise UnsupportedModelError(f"{type(model).__name__}: expected decoder layers in model.language_model.layers")
    return layers


def final_norm(model: nn.Module) -> nn.Module:
    """The norm between the last decoder layer and the language head."""
    return _part(model, "model.language_model.norm")


def language_head(model: nn.Module) -> nn.Module:
    """The language head, hidden -> vocabulary."""
    return _part(model, "lm_head")


def vision_tower(model: nn.Module) -> nn.Module:
    """The vision tower."""
    return _part(model, "model.vision_tower")


def hidden_size(model: nn.Module) -> int:
    """Width of the decoder's hidden states."""
    return int(cast(Any, language_model(model)).config.hidden_size)


def vocab_size(model: nn.Module) -> int:
    """Rows of the language head, padding included."""
    return int(cast(Any, language_head(model)).weight.shape[0])


def _part(model: nn.Module, path: str) -> nn.Module:
    part: Any = model
    for name in path.split("."):
        part = getattr(part, name, None)
    if not isinstance(part, nn.Module):
        raise UnsupportedModelError(f"{type(model).__name__}: expected a Llava-like model with {path}, got none")
    return part
