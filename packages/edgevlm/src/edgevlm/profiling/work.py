"""Multiply-accumulates of one prefill, layer by layer, from shapes alone.

Two ways to count the edge model's fusion. The paper's: its decoder layers run whole over visual and text
tokens. As run: this package computes queries and feed-forward of visual tokens only where a later fusion layer
needs them, so not in the last one. Without a fusion decoder both are the same.

Attention is counted as its two products over all pairs of tokens: kernels that skip what a causal mask
forbids do up to half of the language model's.
"""

import re
from collections import Counter
from typing import Any, Literal

from torch import nn

from edgevlm.profiling.layouts import VisualLayout
from edgevlm.profiling.parts import COMPRESSOR, FUSION, HEAD, LANGUAGE, PROJECTOR, VISION, part_of

Way = Literal["paper", "as_run"]
_KEYS_VALUES = ("k_proj", "v_proj")


def linear_macs(model: nn.Module, config: Any, layout: VisualLayout, num_text: int, way: Way) -> Counter[str]:
    """Of linear layers and convolutions, by part; the head at every position."""
    macs: Counter[str] = Counter()
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear | nn.Conv2d | nn.Conv3d):
            part = part_of(config, name)
            if part is not None:
                macs[part] += module.weight.numel() * _uses(name, module, part, config, layout, num_text, way)
    return macs


def product_macs(model: nn.Module, config: Any, layout: VisualLayout, num_text: int, way: Way) -> Counter[str]:
    """Of products of activations, by part: attention's two, and resampling before a convolution compressor."""
    text: Any = config.get_text_config()
    num_layers, width = int(text.num_hidden_layers), int(text.num_attention_heads) * head_dim(text)
    num_seen = layout.num_seen + num_text
    macs = Counter({LANGUAGE: 2 * num_layers * width * num_seen**2, VISION: _vision_attention(config, layout)})
    if config.model_type == "edgevlm" and config.fusion != "none":
        pairs = _fusion_pairs(config, layout.num_projected, num_text, way)
        macs[FUSION] = 2 * pairs["cross"] * int(text.hidden_size) + 2 * pairs["decoder"] * width
    if config.model_type == "edgevlm":
        macs[COMPRESSOR] = _resampling(model, config)
    return macs


def head_dim(text: Any) -> int:
    """Features of a head of the language model."""
    return int(getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads)


def _uses(name: str, module: nn.Module, part: str, config: Any, layout: VisualLayout, num_text: int, way: Way) -> int:
    """How often a layer's weights are used in one prefill."""
    if part == VISION:
        return layout.num_patches if _embeds_patches(name, module) else layout.num_encoded
    if part == COMPRESSOR:
        # The MLP's layers run over the token axis, once for each feature.
        return layout.num_seen if isinstance(module, nn.Conv2d) else int(config.get_text_config().hidden_size)
    if part == FUSION:
        return _fusion_uses(name, config, layout.num_projected, num_text, way)
    return {PROJECTOR: layout.num_projected, LANGUAGE: layout.num_seen + num_text, HEAD: layout.num_seen + num_text}[
        part
    ]


def _resampling(model: Any, config: Any) -> int:
    """Of the product that brings an image's tokens to the convolution's grid."""
    compressor = model.model.compressor
    if config.compressor != "conv" or (config.vision_encoder != "siglip2" and compressor.grid == compressor.square):
        return 0
    rows, columns = compressor.grid
    return int(rows * columns * config.num_visual_tokens * config.get_text_config().hidden_size)


def _embeds_patches(name: str, module: nn.Module) -> bool:
    return isinstance(module, nn.Conv2d | nn.Conv3d) or name.endswith("patch_embedding")


def _fusion_uses(name: str, config: Any, num_visual: int, num_text: int, way: Way) -> int:
    reads_keys = name.endswith(_KEYS_VALUES)
    if ".cross" in name:
        return num_visual if reads_keys else num_text
    index = re.search(r"\.(\d+)\.", name)
    is_last = index is None or int(index[1]) == config.num_fusion_layers - 1
    return num_text if way == "as_run" and is_last and not reads_keys else num_visual + num_text


def _fusion_pairs(config: Any, num_visual: int, num_text: int, way: Way) -> Counter[str]:
    """Pairs of tokens that attend, of both branches."""
    num_layers, whole = config.num_fusion_layers, num_visual + num_text
    pairs: Counter[str] = Counter()
    if config.fusion in ("cross", "combined"):
        pairs["cross"] = num_layers * num_text * num_visual
    if config.fusion in ("decoder", "combined"):
        as_run = num_layers * num_text * whole + (num_layers - 1) * num_visual**2
        pairs["decoder"] = num_layers * whole**2 if way == "paper" else as_run
    return pairs


def _vision_attention(config: Any, layout: VisualLayout) -> int:
    vision: Any = config.vision_config
    width = int(vision.embed_dim if config.model_type == "qwen2_vl" else vision.hidden_size)
    num_layers = int(vision.num_hidden_layers)
    num_full = len(set(vision.fullatt_block_indexes)) if layout.windows else num_layers
    pairs = num_full * sum(length**2 for length in layout.sequences)
    pairs += (num_layers - num_full) * sum(length**2 for length in layout.windows)
    return 2 * width * pairs
