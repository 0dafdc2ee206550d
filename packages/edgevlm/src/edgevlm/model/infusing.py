"""Runs the fusion where it belongs in a sequence: over a prompt's text tokens, and over each later token.

The fusion's decoder branch has positions of its own: a row's uncompressed visual tokens first, then its
text tokens in order.

Shapes: B rows, T tokens, N visual tokens of an image, V of a row, S text tokens of a row at most, D features.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from edgevlm.model.fusion import Fusion, Rotary
from edgevlm.model.fusion_cache import FusionState
from edgevlm.model.image_output import ImageOutput
from edgevlm.model.layout import Layout
from edgevlm.model.text_masks import prompt_text_mask

RotaryEmbedding = Callable[[Tensor, Tensor], Rotary]


def fuse_prompt(
    fusion: Fusion,
    rotary_emb: RotaryEmbedding,
    embeds_btd: Tensor,
    images: ImageOutput,
    layout: Layout,
    state: FusionState,
    attention_mask: Tensor | None,
    position_ids_bt: Tensor,
) -> Tensor:
    """Embeddings of a prompt whose text has seen its images; fills the state.

    Args:
        fusion: The model's.
        rotary_emb: The language model's rotary tables, of a tensor's type and positions.
        embeds_btd: Word embeddings; placeholders pass unchanged.
        images: With uncompressed tokens and their validity.
        layout: Where images and text stand.
        state: Empty.
        attention_mask: As the language model gets it, or None.
        position_ids_bt: Contiguous positions.
    """
    assert images.last_hidden_state is not None
    assert images.valid is not None
    rows, num_features = (embeds_btd.shape[0], -1), embeds_btd.shape[-1]
    visual = images.last_hidden_state[layout.image_of_bk].view(*rows, num_features)
    valid = (images.valid[layout.image_of_bk] & layout.has_image_bk[..., None]).view(rows)
    index, filled = layout.text_index()
    allowed, text_valid = prompt_text_mask(attention_mask, index, filled)
    places = torch.arange(visual.shape[1], device=embeds_btd.device)[None]
    fusion.remember(state, visual, valid, rotary_emb(visual, places))
    state.begin(text_valid)
    expanded = index[..., None].expand(-1, -1, num_features)
    ranks = (position_ids_bt - layout.num_before_bt).gather(1, index)
    rotary = _text_rotary(rotary_emb, embeds_btd, ranks, state, images.last_hidden_state.shape[1])
    fused = fusion(embeds_btd.gather(1, expanded), rotary, state, allowed)
    return embeds_btd.scatter(1, expanded, fused.to(embeds_btd.dtype))


def fuse_next(
    fusion: Fusion,
    rotary_emb: RotaryEmbedding,
    embeds_btd: Tensor,
    state: FusionState,
    attention_mask: Tensor | None,
    position_ids_bt: Tensor,
    num_visual: int,
) -> Tensor:
    """Embeddings of text after the prompt that has seen the prompt's images; `num_visual` is N."""
    ranks = position_ids_bt - state.num_placeholders_b[:, None]
    allowed = state.text_mask(attention_mask, embeds_btd.shape[1])
    fused = fusion(embeds_btd, _text_rotary(rotary_emb, embeds_btd, ranks, state, num_visual), state, allowed)
    return fused.to(embeds_btd.dtype)


def _text_rotary(
    rotary_emb: RotaryEmbedding, embeds: Tensor, ranks_bs: Tensor, state: FusionState, num_visual: int
) -> Rotary:
    return rotary_emb(embeds, ranks_bs + state.num_images_b[:, None] * num_visual)
