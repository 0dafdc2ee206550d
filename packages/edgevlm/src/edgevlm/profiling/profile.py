"""Parameters and linear-layer costs of an edge model from its configuration alone, as the paper counts them.

The paper's "GFLOPS" are giga multiply-accumulates of the linear layers in one prefill, and its "B"
parameters are units of 2^30; its formula gives the tables' figures and is followed here.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from edgevlm.errors import ModelInputError
from edgevlm.model.configuration import EdgeVlmConfig
from edgevlm.model.modeling import EdgeVlmForConditionalGeneration


@dataclass(frozen=True, kw_only=True, slots=True)
class Profile:
    """Costs of one prefill of one image and some text.

    Attributes:
        num_params: Tied ones once.
        macs_linear: Multiply-accumulates of linear layers, attention products left out. The
            fusion's decoder layer is counted over visual and text tokens, as the paper does; this
            package's own code runs its queries and feed-forward for text tokens only.
    """

    num_params: int
    macs_linear: int


def auroraedge_config(*, fusion: Any = "combined", compressor: Any = "mlp") -> EdgeVlmConfig:
    """AuroraEdge-V-2B: SigLIP2-so400m without head, 256 to 64 visual tokens, Qwen2.5-1.5B."""
    return EdgeVlmConfig(fusion=fusion, compressor=compressor)


def profile(config: EdgeVlmConfig, *, num_text_tokens: int) -> Profile:
    """Counts the model's layers on torch's meta device: no weights are made.

    Raises:
        ModelInputError: num_text_tokens is below 1.
    """
    if num_text_tokens < 1:
        raise ModelInputError(f"num_text_tokens: expected at least 1, got {num_text_tokens}")
    with torch.device("meta"):
        model = EdgeVlmForConditionalGeneration(config)
    tokens = _tokens_of_parts(config, num_text_tokens)
    macs = 0
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear | nn.Conv2d):
            part = max((part for part in tokens if name.startswith(part)), key=len)
            macs += module.weight.numel() * tokens[part]
    return Profile(num_params=sum(parameter.numel() for parameter in model.parameters()), macs_linear=macs)


def _tokens_of_parts(config: EdgeVlmConfig, num_text: int) -> dict[str, int]:
    """How often each part's weights are used, by the prefix of its layers' names; the longest prefix counts."""
    num_visual, num_seen = int(config.num_visual_tokens or 0), config.num_compressed_tokens + num_text
    return {
        "model.vision_tower": num_visual,
        "model.multi_modal_projector": num_visual,
        # Over the token axis, once for every feature.
        "model.compressor": int(config.get_text_config().hidden_size),
        "model.fusion.cross": num_text,
        "model.fusion.cross.k_proj": num_visual,
        "model.fusion.cross.v_proj": num_visual,
        "model.fusion.decoder": num_visual + num_text,
        "model.language_model": num_seen,
        "lm_head": num_seen,
    }
