"""Where images and text stand in a batch, and the positions that follow from it.

Shapes: B rows, T tokens, I images, K images of a row at most, N and M visual tokens of an image
before and after the compressor, S text tokens of a row at most.
"""

from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from edgevlm.connectors import averaging_matrix
from edgevlm.errors import ModelInputError


@dataclass(frozen=True, kw_only=True, slots=True)
class Layout:
    """Placeholders of a batch.

    Attributes:
        is_visual_bt: True at a placeholder.
        num_before_bt: Placeholders before each token in its row.
        num_placeholders_b: Placeholders of each row.
        image_of_bk: Index of each row's images; 0 where a row has fewer.
        has_image_bk: False where a row has fewer.
    """

    is_visual_bt: Tensor
    num_before_bt: Tensor
    num_placeholders_b: Tensor
    image_of_bk: Tensor
    has_image_bk: Tensor

    @classmethod
    def of(cls, is_visual_bt: Tensor, *, num_images: int, num_compressed: int) -> Self:
        """Layout of `num_images` images, in the order of their placeholders, `num_compressed` each.

        Raises:
            ModelInputError: Placeholders and images do not match.
        """
        counts_b = is_visual_bt.sum(1)
        if int(counts_b.sum()) != num_images * num_compressed or bool((counts_b % num_compressed).any()):
            raise ModelInputError(
                f"input_ids: expected {num_compressed} image placeholders for each of {num_images} images, "
                f"got {counts_b.tolist()} in the rows"
            )
        images_b = counts_b // num_compressed
        rank_k = torch.arange(int(images_b.max()), device=counts_b.device)
        has_image_bk = rank_k < images_b[:, None]
        first_b = images_b.cumsum(0) - images_b
        return cls(
            is_visual_bt=is_visual_bt,
            num_before_bt=is_visual_bt.cumsum(1) - is_visual_bt.long(),
            num_placeholders_b=counts_b,
            image_of_bk=(first_b[:, None] + rank_k) * has_image_bk,
            has_image_bk=has_image_bk,
        )

    def text_index(self) -> tuple[Tensor, Tensor]:
        """Sequence index of each row's text tokens in order, [B, S], and False where a row has fewer, [B, S].

        The filler points at placeholders.
        """
        order_bt = self.is_visual_bt.long().argsort(dim=1, stable=True)
        num_text_b = self.is_visual_bt.shape[1] - self.num_placeholders_b
        rank_s = torch.arange(int(num_text_b.max()), device=order_bt.device)
        return order_bt[:, : rank_s.numel()], rank_s < num_text_b[:, None]


def contiguous_positions(attention_mask: Tensor | None, num_tokens: int, num_past: int, device: torch.device) -> Tensor:
    """Positions [B or 1, T] of new tokens: their count among all that the 2-D mask keeps."""
    if attention_mask is None or attention_mask.ndim != 2:
        return torch.arange(num_past, num_past + num_tokens, device=device)[None]
    return (attention_mask.long().cumsum(1) - 1).clamp(min=0)[:, -num_tokens:]


def uncompressed_positions(
    position_ids_bt: Tensor, num_before_bt: Tensor, is_visual_bt: Tensor, *, num_visual: int, num_compressed: int
) -> Tensor:
    """Positions the same tokens have beside uncompressed images, [B, T].

    Every image before a token adds num_visual - num_compressed to its position; a compressed token
    stands at its group's mean position, floored. Works on packed positions too: all that matters is
    how many placeholders come before a token in its row, and they all stand in the shared prefix.
    """
    shift_bt = num_before_bt // num_compressed * (num_visual - num_compressed)
    average_mn = averaging_matrix(num_visual, num_compressed).double()
    mean_m = (average_mn @ torch.arange(num_visual, dtype=torch.float64) + 1e-6).long().to(position_ids_bt.device)
    within_bt = num_before_bt % num_compressed
    return position_ids_bt + shift_bt + torch.where(is_visual_bt, mean_m[within_bt] - within_bt, 0)
