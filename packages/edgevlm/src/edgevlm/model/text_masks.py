"""Which text tokens a text token may see in the fusion's decoder branch.

It is the language model's own rule restricted to text: causal, never padding, and in a packed row
never another question's tokens. So no answer token ever sees a later one.

Shapes: B rows, T tokens of the sequence, S text tokens, L text tokens with the earlier ones.
"""

import torch
from torch import Tensor


def prompt_text_mask(attention_mask: Tensor | None, index_bs: Tensor, filled_bs: Tensor) -> tuple[Tensor, Tensor]:
    """Mask of a prompt's text tokens and which of them count at all.

    Args:
        attention_mask: None, [B, T] with 0 at padding, or bool [B, 1, T, T].
        index_bs: Sequence index of text tokens.
        filled_bs: False where `index_bs` is filler.

    Returns:
        bool [B, S, S], every token seeing at least itself; bool [B, S], False at filler and padding.
    """
    num_text = index_bs.shape[1]
    rank_s = torch.arange(num_text, device=index_bs.device)
    itself_ss = rank_s[:, None] == rank_s
    if attention_mask is not None and attention_mask.ndim == 4:
        rows_bst = attention_mask[:, 0].bool().gather(1, index_bs[..., None].expand(-1, -1, attention_mask.shape[-1]))
        allowed_bss = rows_bst.gather(2, index_bs[:, None].expand(-1, num_text, -1))
        return (allowed_bss & filled_bs[:, None]) | itself_ss, filled_bs
    valid_bs = filled_bs
    if attention_mask is not None:
        valid_bs = valid_bs & attention_mask.bool().gather(1, index_bs)
    return ((rank_s[:, None] >= rank_s) & valid_bs[:, None]) | itself_ss, valid_bs


def next_text_mask(attention_mask: Tensor | None, earlier_bl: Tensor, num_new: int) -> tuple[Tensor, Tensor]:
    """Mask of new text tokens after a prompt, bool [B, num_new, L + num_new], and their validity [B, num_new]."""
    rank = torch.arange(num_new, device=earlier_bl.device)
    if attention_mask is None:
        valid = torch.ones(earlier_bl.shape[0], num_new, dtype=torch.bool, device=earlier_bl.device)
    else:
        valid = attention_mask[:, -num_new:].bool()
    new = ((rank[:, None] >= rank) & valid[:, None]) | (rank[:, None] == rank)
    return torch.cat((earlier_bl[:, None].expand(-1, num_new, -1), new), dim=-1), valid
