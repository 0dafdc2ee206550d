"""Runs a CLIP-like vision tower and puts its patch features, and the attention they receive, on their grid.

Shape suffixes: B images or tiles, H and W sides of the grid, S tokens of the tower, D channels.
"""

import inspect
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F

from tokenreduce.errors import GridError, UnsupportedModelError
from tokenreduce.families.attention import attention_layers, attention_received


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Tiles:
    """Features [B, H, W, D] of images of one size, and the attention received [B, H, W] if it was asked for."""

    features: torch.Tensor
    attention: torch.Tensor | None = None


def full_sides(model: Any, pixel_values: torch.Tensor) -> tuple[int, int]:
    """Patches along the height and the width of images [B, C, height, width]."""
    patch = model.config.vision_config.patch_size
    patch_height, patch_width = (patch, patch) if isinstance(patch, int) else patch
    return pixel_values.shape[-2] // patch_height, pixel_values.shape[-1] // patch_width


def blank_image(model: Any) -> torch.Tensor:
    """One black image [1, C, height, width] of the configured size."""
    vision = model.config.vision_config
    size = vision.image_size
    sides = (size, size) if isinstance(size, int) else size
    return torch.zeros(1, getattr(vision, "num_channels", 3), *sides, dtype=model.dtype, device=model.device)


def tower_tiles(
    model: Any,
    pixel_values: torch.Tensor,
    arguments: dict[str, Any],
    *,
    needs_attention: bool = False,
    pixel_factor: int = 1,
    multiple: int = 1,
    last_state: bool = False,
) -> Tiles:
    """Features between the tower and what follows it; [B, C, height, width] -> [B, H, W, D], row-major.

    Several feature layers are concatenated along D. `vision_feature_layer` and `vision_feature_select_strategy`
    come from the call's arguments, else from the model's configuration.

    Args:
        model: The model; its tower is `model.model.vision_tower`.
        pixel_values: The images.
        arguments: The call.
        needs_attention: Whether to measure the attention.
        pixel_factor: What to divide the sides by; H and W become ceil(side / factor).
        multiple: Patches that H and W have to be a multiple of.
        last_state: Whether layer -1 means the tower's last state, after its last norm.

    Raises:
        GridError: The tower's tokens do not fill the grid, for example because CLS is still there.
        UnsupportedModelError: The tower cannot do what `needs_attention` or `pixel_factor` asks.
    """
    tower, config = model.model.vision_tower, model.config
    layer = arguments.get("vision_feature_layer")
    layer = config.vision_feature_layer if layer is None else layer
    layers = [layer] if isinstance(layer, int) else list(layer)
    strategy = arguments.get("vision_feature_select_strategy") or config.vision_feature_select_strategy
    options: dict[str, Any] = {}
    if pixel_factor > 1:
        pixel_values = _shrink(model, pixel_values, pixel_factor, multiple)
        options = _interpolation(tower)
    height, width = full_sides(model, pixel_values)
    with entering(attention_of(tower, layers[-1]) if needs_attention else None) as entered:
        outputs = tower(pixel_values, output_hidden_states=layers, return_dict=True, **options)
    if last_state and layers == [-1]:
        states = [outputs.last_hidden_state]
    else:
        states = [outputs.hidden_states[index] for index in layers]
    if strategy == "default":
        states = [state[:, 1:] for state in states]
    tokens = states[0] if len(states) == 1 else torch.cat(states, dim=-1)
    if tokens.ndim != 3 or tokens.shape[1] != height * width:
        raise GridError(
            f"vision tower with vision_feature_select_strategy={strategy!r}: expected {height * width} tokens of a "
            f"{height} x {width} grid without CLS, got shape {list(tokens.shape)}"
        )
    attention = attention_received(*entered[0], height * width) if entered else None
    return Tiles(
        features=tokens.unflatten(1, (height, width)),
        attention=None if attention is None else attention.unflatten(1, (height, width)),
    )


@contextmanager
def entering(module: torch.nn.Module | None) -> Iterator[list[tuple[Any, torch.Tensor]]]:
    """Collects what enters a module while the context lasts, as pairs of the module and its input."""
    entered: list[tuple[Any, torch.Tensor]] = []
    if module is None:
        yield entered
        return

    def keep(module: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        entered.append((module, args[0] if args else kwargs["hidden_states"]))

    hook = module.register_forward_pre_hook(keep, with_kwargs=True)
    try:
        yield entered
    finally:
        hook.remove()


def attention_of(tower: Any, state: int) -> torch.nn.Module:
    """The attention of the layer that makes hidden state `state`; state 0, the embeddings, takes the first layer's."""
    layers = attention_layers(tower)
    if not layers:
        raise UnsupportedModelError(f"vision tower: expected layers with q_proj and k_proj, got {type(tower).__name__}")
    return layers[max(state % (len(layers) + 1) - 1, 0)]


def _shrink(model: Any, pixel_values: torch.Tensor, factor: int, multiple: int) -> torch.Tensor:
    full = full_sides(model, pixel_values)
    patches = [-(-side // (multiple * factor)) * multiple for side in full]
    sides = [
        int(pixels // side * few) for pixels, side, few in zip(pixel_values.shape[-2:], full, patches, strict=True)
    ]
    small = F.interpolate(pixel_values.float(), sides, mode="bilinear", antialias=True)
    return small.to(pixel_values.dtype)


def _interpolation(tower: Any) -> dict[str, Any]:
    name = "interpolate_pos_encoding"
    if name in inspect.signature(tower.forward).parameters:
        return {name: True}
    # Others take images of any size without being asked.
    if hasattr(getattr(tower, "embeddings", None), name):
        return {}
    raise UnsupportedModelError(f"vision tower: expected one that interpolates positions, got {type(tower).__name__}")


def split_tiles(tiles: Tiles) -> Sequence[tuple[torch.Tensor, torch.Tensor | None]]:
    """Features [H, W, D] and attention [H, W] or None of each tile."""
    attention = [None] * len(tiles.features) if tiles.attention is None else list(tiles.attention)
    return list(zip(tiles.features, attention, strict=True))
