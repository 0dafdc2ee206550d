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
        attention_mask: None, [B, T] with 0 at padding, or [B, 1, T, keys] as in `seen_keys`; a token that
            does not see itself is padding.
        index_bs: Sequence index of text tokens.
        filled_bs: False where `index_bs` is filler.

    Returns:
        bool [B, S, S], every token seeing at least itself; bool [B, S], False at filler and padding.
    """
    num_text = index_bs.shape[1]
    rank_s = torch.arange(num_text, device=index_bs.device)
    itself_ss = rank_s[:, None] == rank_s
    if attention_mask is not None and attention_mask.ndim == 4:
        seen = seen_keys(attention_mask)
        rows_bsk = seen.gather(1, index_bs[..., None].expand(-1, -1, seen.shape[-1]))
        allowed_bss = rows_bsk.gather(2, index_bs[:, None].expand(-1, num_text, -1))
        valid_bs = filled_bs & allowed_bss.diagonal(dim1=1, dim2=2)
        return (allowed_bss & valid_bs[:, None]) | itself_ss, valid_bs
    valid_bs = filled_bs
    if attention_mask is not None:
        valid_bs = valid_bs & attention_mask.bool().gather(1, index_bs)
    return ((rank_s[:, None] >= rank_s) & valid_bs[:, None]) | itself_ss, valid_bs


def next_text_mask(attention_mask: Tensor | None, earlier_bl: Tensor, num_new: int) -> tuple[Tensor, Tensor]:
    """Mask of new text tokens after a prompt, bool [B, num_new, L + num_new], and their validity [B, num_new].

    Args:
        attention_mask: None, [B, all tokens so far], or [B, 1, num_new, all tokens so far] as in `seen_keys`.
        earlier_bl: Validity of earlier text tokens.
        num_new: New tokens of every row.
    """
    rank = torch.arange(num_new, device=earlier_bl.device)
    first = 0 if attention_mask is None else attention_mask.shape[-1] - num_new
    valid = valid_tokens(attention_mask, rank + first, earlier_bl.shape[0])
    new = ((rank[:, None] >= rank) & valid[:, None]) | (rank[:, None] == rank)
    return torch.cat((earlier_bl[:, None].expand(-1, num_new, -1), new), dim=-1), valid


def valid_tokens(attention_mask: Tensor | None, places_s: Tensor, num_rows: int) -> Tensor:
    """Which of the newest tokens are no padding, bool [B, S].

    Args:
        attention_mask: None, [B, keys], or [B, 1, S, keys] as in `seen_keys`, whose queries are these tokens.
        places_s: Where they stand among all tokens.
        num_rows: B.
    """
    if attention_mask is None:
        return torch.ones(num_rows, places_s.shape[0], dtype=torch.bool, device=places_s.device)
    if attention_mask.ndim == 2:
        return attention_mask.index_select(1, places_s).bool()
    return seen_keys(attention_mask).index_select(2, places_s).diagonal(dim1=1, dim2=2)


def plain_mask(attention_mask: Tensor | dict[str, Tensor | None] | None) -> Tensor | None:
    """The mask of full attention, of a dictionary by type of layer; a mask alone is that one."""
    return attention_mask.get("full_attention") if isinstance(attention_mask, dict) else attention_mask


def added_mask(mask_b1tk: Tensor, dtype: torch.dtype) -> Tensor:
    """What a mask over queries and keys adds to scores: 0 or the least number."""
    if mask_b1tk.is_floating_point():
        return mask_b1tk
    return torch.zeros(mask_b1tk.shape, dtype=dtype, device=mask_b1tk.device).masked_fill(
        ~mask_b1tk.bool(), torch.finfo(dtype).min
    )


def seen_keys(mask_b1tk: Tensor) -> Tensor:
    """Which keys each token sees, bool [B, T, keys], of such a bool mask or of what is added to scores."""
    mask = mask_b1tk[:, 0]
    return mask if mask.dtype == torch.bool else mask == 0 if mask.is_floating_point() else mask.bool()
