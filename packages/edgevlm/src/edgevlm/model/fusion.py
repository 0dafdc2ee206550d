"""Fusion module: infuses uncompressed visual tokens into text tokens (Section 3.5, Figure 5).

Every branch starts silent behind a tanh gate at zero: projected visual tokens are many times larger
than word embeddings and would drown them.

Shapes: B rows, S text tokens, V visual tokens of a row, D features, H heads, h features of a head.
"""

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
    """One decoder layer over visual and text tokens, read at the text positions only, behind a gate.

    What the layer would give at visual positions is never used, so queries are computed for text
    only; with one layer that changes nothing.
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

    def forward(self, text_bsd: Tensor, keys: Tensor, values: Tensor, rotary: Rotary, allowed: Tensor | None) -> Tensor:
        """Text tokens after the layer; keys and values cover visual and text tokens, `allowed` [B, 1, S, L]."""
        layer, attention = self.layer, self.layer.self_attn
        normed = layer.input_layernorm(text_bsd)
        query = attention.q_proj(normed).view(*normed.shape[:2], -1, attention.head_dim).transpose(1, 2)
        attended = F.scaled_dot_product_attention(
            _rotated(query, rotary), keys, values, attn_mask=allowed, scale=attention.scaling, enable_gqa=True
        )
        hidden = text_bsd + attention.o_proj(_merged(attended))
        hidden = hidden + layer.mlp(layer.post_attention_layernorm(hidden))
        fused: Tensor = text_bsd + self.gate.tanh() * (hidden - text_bsd)
        return fused


class Fusion(nn.Module):
    """Cross, decoder, or both in this order. A row without an image passes unchanged.

    Args:
        kind: "cross", "decoder" or "combined".
        text_config: Of the language model.
        layer: A decoder layer of its own for the decoder branch.
    """

    def __init__(self, kind: str, text_config: Any, layer: nn.Module | None) -> None:
        super().__init__()
        num_features, num_heads = text_config.hidden_size, text_config.num_attention_heads
        uses_cross = kind in ("cross", "combined")
        self.cross = CrossFusion(num_features, num_heads, text_config.rms_norm_eps) if uses_cross else None
        self.decoder = None if layer is None else DecoderFusion(layer)

    def remember(self, state: FusionState, visual_bvd: Tensor, valid_bv: Tensor, rotary_v: Rotary) -> None:
        """Puts an image's keys and values into the state, once, before any text."""
        state.tensors["visual_valid"] = valid_bv
        if self.cross is not None:
            keys, values = self.cross.visual_keys_values(visual_bvd)
            state.tensors |= {"cross_keys": keys, "cross_values": values}
        if self.decoder is not None:
            keys, values = self.decoder.keys_values(visual_bvd, rotary_v)
            state.tensors |= {"decoder_keys": keys, "decoder_values": values}

    def forward(self, text_bsd: Tensor, rotary_s: Rotary, state: FusionState, text_allowed: Tensor | None) -> Tensor:
        """Fuses new text tokens and remembers what later ones need.

        Args:
            text_bsd: Word embeddings.
            rotary_s: Rotary tables of their positions.
            state: Holds the images and earlier text tokens.
            text_allowed: bool [B, S, earlier + S], which text tokens each new one sees; None: all,
                for one new token where nothing is padded.
        """
        fused, kept = text_bsd, state.tensors
        has_image_b = kept["visual_valid"].any(1)
        visual_allowed = None
        if text_allowed is not None:
            # A row without an image must not have an empty softmax; its result is dropped below.
            visual_allowed = (kept["visual_valid"] | ~has_image_b[:, None])[:, None, None]
        if self.cross is not None:
            fused = self.cross(fused, kept["cross_keys"], kept["cross_values"], visual_allowed)
        if self.decoder is not None:
            keys, values = self.decoder.keys_values(fused, rotary_s)
            keys, values = state.append("decoder_keys", keys, dim=2), state.append("decoder_values", values, dim=2)
            allowed = None
            if visual_allowed is not None and text_allowed is not None:
                allowed = _joined(visual_allowed, text_allowed)
            fused = self.decoder(fused, keys, values, rotary_s, allowed)
        return fused if state.dense else torch.where(has_image_b[:, None, None], fused, text_bsd)


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
