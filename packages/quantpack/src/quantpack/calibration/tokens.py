"""Which tokens of a calibration sample are padding, and which stand for a piece of an image.

Shape letters: B rows, T tokens of a prompt, I images, N patches of an image.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from quantpack.selection import part_of


def visual_token_ids(model: nn.Module) -> frozenset[int]:
    """The placeholders of images and videos in input_ids, as the model's config names them."""
    config = getattr(model, "config", None)
    names = ("image_token_id", "image_token_index", "video_token_id", "video_token_index")
    ids = (getattr(config, name, None) for name in names)
    return frozenset(token for token in ids if isinstance(token, int))


def mark_tokens(
    sample: Mapping[str, Any], name: str, num_tokens: int, visual_ids: frozenset[int]
) -> tuple[Tensor, Tensor]:
    """(no padding, visual): bool [num_tokens] each, for a site called `name` that reads so many tokens.

    In the language model, and wherever a site reads as many tokens as the prompt has, both follow
    from input_ids and attention_mask. Elsewhere, and in the vision tower always, every token is visual.
    """
    part = part_of(name)
    input_ids = sample.get("input_ids")
    is_prompt = part != "vision" and isinstance(input_ids, Tensor) and input_ids.numel() == num_tokens
    mask = _valid(sample.get("attention_mask" if is_prompt else "pixel_attention_mask"))
    kept = torch.ones(num_tokens, dtype=torch.bool)
    if mask is not None and mask.numel() == num_tokens and (is_prompt or part == "vision"):
        kept = mask.reshape(-1).cpu()
    if not is_prompt:
        return kept, torch.full((num_tokens,), part != "language")
    assert isinstance(input_ids, Tensor)
    return kept, torch.isin(input_ids.reshape(-1).cpu(), torch.tensor(sorted(visual_ids), dtype=input_ids.dtype))


def _valid(mask: object) -> Tensor | None:
    """[B, T] bool from a plain mask, or from a packed one [B, 1, T, T]: padding sees, and is seen by, itself only."""
    if not isinstance(mask, Tensor):
        return None
    if mask.dim() == 4 and mask.dtype == torch.bool and mask.shape[-1] == mask.shape[-2]:
        allowed = mask[:, 0]
        alone = (allowed.sum(-1) == 1) & (allowed.sum(-2) == 1) & allowed.diagonal(dim1=-2, dim2=-1)
        # A row of one token is alone too, but no padding.
        return ~alone if mask.shape[-1] > 1 else torch.ones_like(alone)
    return mask != 0 if mask.dim() == 2 else None
