"""Bytes of weights in four types and of the KV cache, from shapes alone.

Quantized are the matrices of linear layers; all else stays in bfloat16: word embeddings and head (as
quantpack packs by default), the patch embedding, convolutions, norms, biases, gates. INT8: one float16 scale
for each row. INT4: one scale of 2 bytes and one zero point of 4 bits for each group of 128 weights of a row, the
last group of a row maybe shorter. Nothing is compressed losslessly here; what a real pack takes on disk,
quantpack says.
"""

import math
from dataclasses import dataclass
from typing import Any

from torch import nn

from edgevlm.profiling.layouts import VisualLayout
from edgevlm.profiling.parts import HEAD, part_of
from edgevlm.profiling.work import head_dim

GROUP_SIZE = 128
SCALE_BYTES = 2


@dataclass(frozen=True, kw_only=True, slots=True)
class WeightBytes:
    """Weights, tied ones once.

    Attributes:
        num_quantized: Weights that INT8 and INT4 change.
        num_kept: All others, 2 bytes each in int8 and int4.
        float32: All in float32.
        bfloat16: All in bfloat16.
        int8: One byte for each quantized weight, the scales, and the kept ones.
        int4: Half a byte for each, scales and zero points, and the kept ones.
        int8_overhead: Scales, part of `int8`.
        int4_overhead: Scales and zero points, part of `int4`.
    """

    num_quantized: int
    num_kept: int
    float32: int
    bfloat16: int
    int8: int
    int4: int
    int8_overhead: int
    int4_overhead: int


def weight_bytes(model: nn.Module, config: Any) -> WeightBytes:
    """Bytes of a model's weights; it may be on the meta device."""
    num_params = sum(parameter.numel() for parameter in model.parameters())
    num_quantized = num_rows = num_groups = int4_codes = 0
    for name, module in model.named_modules():
        if not _is_quantized(name, module, config):
            continue
        assert isinstance(module, nn.Linear)
        num_quantized += module.weight.numel()
        num_rows += module.out_features
        num_groups += module.out_features * math.ceil(module.in_features / GROUP_SIZE)
        int4_codes += math.ceil(module.weight.numel() / 2)
    num_kept = num_params - num_quantized
    int8_overhead = SCALE_BYTES * num_rows
    int4_overhead = SCALE_BYTES * num_groups + math.ceil(num_groups / 2)
    return WeightBytes(
        num_quantized=num_quantized, num_kept=num_kept, float32=4 * num_params, bfloat16=2 * num_params,
        int8=num_quantized + int8_overhead + 2 * num_kept, int4=int4_codes + int4_overhead + 2 * num_kept,
        int8_overhead=int8_overhead, int4_overhead=int4_overhead,
    )  # fmt: skip


def _is_quantized(name: str, module: nn.Module, config: Any) -> bool:
    return (
        isinstance(module, nn.Linear)
        and part_of(config, name) not in (None, HEAD)
        and not name.endswith("patch_embedding")
    )


def kv_cache_bytes(config: Any, layout: VisualLayout, num_text: int, *, element_bytes: int = 2) -> tuple[int, int]:
    """Bytes of keys and values after the prompt, the fusion's included, and of each later token."""
    text: Any = config.get_text_config()
    # Keys and values of one token in one decoder layer.
    token_bytes = 2 * int(text.num_key_value_heads) * head_dim(text) * element_bytes
    num_layers = int(text.num_hidden_layers)
    prompt = num_layers * token_bytes * (layout.num_seen + num_text)
    later = num_layers * token_bytes
    if config.model_type == "edgevlm":
        if config.fusion in ("cross", "combined"):
            prompt += config.num_fusion_layers * 2 * int(text.hidden_size) * element_bytes * layout.num_projected
        if config.fusion in ("decoder", "combined"):
            prompt += config.num_fusion_layers * token_bytes * (layout.num_projected + num_text)
            later += config.num_fusion_layers * token_bytes
    return prompt, later
