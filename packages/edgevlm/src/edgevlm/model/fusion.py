"""Fusion module: infuses uncompressed visual tokens into text tokens (Section 3.5, Figure 5).

Every branch starts silent behind a tanh gate at zero: projected visual tokens are many times larger
than word embeddings and would drown them.

Shapes: B rows, S text tokens, V visual tokens of a row, D features, H heads, h features of a head.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.models.llama.modeling_llama import rotate_half

from edgevlm.model.fusion_cache import FusionState

Rotary = tuple[Tensor, Tensor]


class CrossFusion(nn.Module):
    """Cross attention from text to visual tokens and a 4x feed-forward, both gated residuals."""

    def __init__(self, num_features: int, num_heads: int, norm_eps: float) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.query_norm = nn.RMSNorm(num_features, eps=norm_eps)
        self.visual_norm = nn.RMSNorm(num_features, eps=norm_eps)
        self.q_proj = nn.Linear(num_features, num_features, bias=False)
        self.k_proj = nn.Linear(num_features, num_features, bias=False)
        self.v_proj = nn.Linear(num_features, num_features, bias=False)
        self.o_proj = nn.Linear(num_features, num_features, bias=False)
        self.ffn_norm = nn.RMSNorm(num_features, eps=norm_eps)
        self.ffn_up = nn.Linear(num_features, 4 * num_features, bias=False)
        self.ffn_down = nn.Linear(4 * num_features, num_features, bias=False)
        self.attention_gate = nn.Parameter(torch.zeros(1))
        self.ffn_gate = nn.Parameter(torch.zeros(1))

    def visual_keys_values(self, visual_bvd: Tensor) -> Rotary:
        """Keys and values [B, H, V, h], computed once for each image."""
        normed = self.visual_norm(visual_bvd)
        return _heads(self.k_proj(normed), self.num_heads), _heads(self.v_proj(normed), self.num_heads)

    def forward(self, text_bsd: Tensor, keys: Tensor, values: Tensor, allowed: Tensor | None) -> Tensor:
        """Text tokens that have seen the image; `allowed` is bool, broadcast to [B, H, S, V], None for all."""
        query = _heads(self.q_proj(self.query_norm(text_bsd)), self.num_heads)
        attended = F.scaled_dot_product_attention(query, keys, values, attn_mask=allowed)
        text_bsd = text_bsd + self.attention_gate.tanh() * self.o_proj(_merged(attended))
        hidden = self.ffn_down(F.gelu(self.ffn_up(self.ffn_norm(text_bsd))))
        fused: Tensor = text_bsd + self.ffn_gate.tanh() * hidden
        return fused


class DecoderFusion(nn.Module):
    """One decoder layer over visual and text tokens; text passes it behind a gate.

    What the last layer would give at visual positions is never used, so its queries are computed for
    text only. Visual tokens see each other and no text, so theirs are computed once.
    """

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer: Any = layer
        self.gate = nn.Parameter(torch.zeros(1))

    def keys_values(self, tokens_bld: Tensor, rotary: Rotary) -> Rotary:
        """Rotated keys and values [B, key-value heads, L, h] of visual or text tokens."""
        attention = self.layer.self_attn
        normed = self.layer.input_layernorm(tokens_bld)
        shape = (*normed.shape[:2], -1, attention.head_dim)
        keys = attention.k_proj(normed).view(shape).transpose(1, 2)
        values = attention.v_proj(normed).view(shape).transpose(1, 2)
        return _rotated(keys, rotary), values

    def whole(self, tokens_bld: Tensor, keys: Tensor, values: Tensor, rotary: Rotary, allowed: Tensor | None) -> Tensor:
        """Tokens after the layer, no gate; `allowed` is bool, broadcast to [B, 1, queries, keys], None for all."""
        layer, attention = self.layer, self.layer.self_attn
        normed = layer.input_layernorm(tokens_bld)
        query = attention.q_proj(normed).view(*normed.shape[:2], -1, attention.head_dim).transpose(1, 2)
        attended = F.scaled_dot_product_attention(
            _rotated(query, rotary), keys, values, attn_mask=allowed, scale=attention.scaling, enable_gqa=True
        )
        hidden = tokens_bld + attention.o_proj(_merged(attended))
        passed: Tensor = hidden + layer.mlp(layer.post_attention_layernorm(hidden))
        return passed

    def forward(self, text_bsd: Tensor, keys: Tensor, values: Tensor, rotary: Rotary, allowed: Tensor | None) -> Tensor:
        """Text tokens after the gated layer; keys and values cover visual and text tokens, `allowed` [B, 1, S, L]."""
        fused: Tensor = text_bsd + self.gate.tanh() * (self.whole(text_bsd, keys, values, rotary, allowed) - text_bsd)
        return fused


class Blocks(nn.Module):
    """Blocks of a branch, in order.

    Not a ModuleList: tools take that for a stack whose layers are called one after another, as calibration
    does, and these are read part by part.
    """

    def __init__(self, blocks: Sequence[nn.Module]) -> None:
        super().__init__()
        for number, block in enumerate(blocks):
            self.add_module(str(number), block)

    def __len__(self) -> int:
        return len(self._modules)

    def __iter__(self) -> Iterator[Any]:
        return self.children()

    def __getitem__(self, number: int) -> Any:
        return list(self.children())[number]


class Fusion(nn.Module):
    """Cross attention, decoder layers, or both. A row without an image passes unchanged.

    Args:
        config: Of the edge model.
        layers: Decoder layers of its own for the decoder branch, or none.
    """

    def __init__(self, config: Any, layers: Sequence[nn.Module]) -> None:
        super().__init__()
        text, number = config.text_config, config.num_fusion_layers
        features = (text.hidden_size, text.num_attention_heads, text.rms_norm_eps)
        uses_cross = config.fusion in ("cross", "combined")
        self.is_parallel = config.fusion_order == "parallel"
        self.cross = Blocks([CrossFusion(*features) for _ in range(number * uses_cross)])
        self.decoder = Blocks([DecoderFusion(layer) for layer in layers])

    def remember(self, state: FusionState, visual_bvd: Tensor, valid_bv: Tensor, rotary_v: Rotary) -> None:
        """Puts the keys and values of a prompt's images into the state, once, before any text."""
        state.tensors["visual_valid"] = valid_bv
        for index, block in enumerate(self.cross):
            state.tensors[f"cross_keys.{index}"], state.tensors[f"cross_values.{index}"] = block.visual_keys_values(
                visual_bvd
            )
        allowed = _nonempty(valid_bv)
        for index, block in enumerate(self.decoder):
            keys, values = block.keys_values(visual_bvd, rotary_v)
            state.tensors[f"decoder_keys.{index}"], state.tensors[f"decoder_values.{index}"] = keys, values
            if index + 1 < len(self.decoder):
                visual_bvd = block.whole(visual_bvd, keys, values, rotary_v, allowed)

    def forward(self, text_bsd: Tensor, rotary_s: Rotary, state: FusionState, text_allowed: Tensor | None) -> Tensor:
        """Fuses new text tokens and remembers what later ones need.

        Args:
            text_bsd: Word embeddings.
            rotary_s: Rotary tables of their positions.
            state: Holds the images and earlier text tokens.
            text_allowed: bool [B, S, earlier + S], which text tokens each new one sees; None: all,
                for one new token where nothing is padded.
        """
        valid_bv = state.tensors["visual_valid"]
        visual_allowed = None if text_allowed is None else _nonempty(valid_bv)
        crossed = self._crossed(text_bsd, state, visual_allowed)
        entering = text_bsd if self.is_parallel else crossed
        decoded = self._decoded(entering, rotary_s, state, visual_allowed, text_allowed)
        fused = crossed + decoded - text_bsd if self.is_parallel else decoded
        return fused if state.dense else torch.where(valid_bv.any(1)[:, None, None], fused, text_bsd)

    def _crossed(self, text_bsd: Tensor, state: FusionState, visual_allowed: Tensor | None) -> Tensor:
        for index, block in enumerate(self.cross):
            keys, values = state.tensors[f"cross_keys.{index}"], state.tensors[f"cross_values.{index}"]
            text_bsd = block(text_bsd, keys, values, visual_allowed)
        return text_bsd

    def _decoded(
        self,
        text_bsd: Tensor,
        rotary_s: Rotary,
        state: FusionState,
        visual_allowed: Tensor | None,
        text_allowed: Tensor | None,
    ) -> Tensor:
        allowed = None
        if self.decoder and visual_allowed is not None and text_allowed is not None:
            allowed = _joined(visual_allowed, text_allowed)
        for index, block in enumerate(self.decoder):
            keys, values = block.keys_values(text_bsd, rotary_s)
            keys = state.append(f"decoder_keys.{index}", keys, dim=2)
            values = state.append(f"decoder_values.{index}", values, dim=2)
            text_bsd = block(text_bsd, keys, values, rotary_s, allowed)
        return text_bsd


def _nonempty(valid_bv: Tensor) -> Tensor:
    """Visual tokens to see, bool [B, 1, 1, V]; all where there are none: a softmax over nothing is not a number.

    What comes of a row without an image is dropped at the end.
    """
    return (valid_bv | ~valid_bv.any(1, keepdim=True))[:, None, None]


def _rotated(heads_bhlh: Tensor, rotary: Rotary) -> Tensor:
    cos, sin = rotary[0][:, None], rotary[1][:, None]
    rotated: Tensor = heads_bhlh * cos + rotate_half(heads_bhlh) * sin
    return rotated


def _joined(visual_b11v: Tensor, text_bsl: Tensor) -> Tensor:
    return torch.cat((visual_b11v.expand(-1, -1, text_bsl.shape[1], -1), text_bsl[:, None]), dim=-1)


def _heads(tokens_bld: Tensor, num_heads: int) -> Tensor:
    return tokens_bld.view(*tokens_bld.shape[:2], num_heads, -1).transpose(1, 2)


def _merged(heads_bhsh: Tensor) -> Tensor:
    return heads_bhsh.transpose(1, 2).flatten(2)
