"""Where images and text stand in a batch, and the positions that follow from it.

Shapes: B rows, T tokens, I images, K images of a row at most, N visual tokens of an image before and
M_i after they were made fewer, S text tokens of a row at most.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import torch
import torch.nn.functional as F
from torch import Tensor

from edgevlm.errors import ModelInputError


@dataclass(frozen=True, kw_only=True, slots=True)
class Layout:
    """Placeholders of a batch.

    Attributes:
        is_visual_bt: True at a placeholder.
        num_before_bt: Placeholders before each token in its row.
        num_placeholders_b: Placeholders of each row.
        num_images_b: Images of each row.
        image_of_bk: Index of each row's images; 0 where a row has fewer.
        has_image_bk: False where a row has fewer.
        borders_i: Placeholders of the batch before each image, [I + 1], all of them at the end.
    """

    is_visual_bt: Tensor
    num_before_bt: Tensor
    num_placeholders_b: Tensor
    num_images_b: Tensor
    image_of_bk: Tensor
    has_image_bk: Tensor
    borders_i: Tensor

    @classmethod
    def of(cls, is_visual_bt: Tensor, num_tokens_i: Sequence[int]) -> Self:
        """Layout of images with `num_tokens_i` placeholders each (at least 1), in their order.

        Raises:
            ModelInputError: A row's placeholders are not whole images, or not all images have theirs.
        """
        device = is_visual_bt.device
        counts_b = is_visual_bt.sum(1)
        borders_i = F.pad(torch.tensor(num_tokens_i, dtype=torch.long, device=device).cumsum(0), (1, 0))
        ends_b = counts_b.cumsum(0)
        # Where a row ends at an image's border, the index of that border: the images up to there.
        upto_b = torch.searchsorted(borders_i, ends_b)
        at_border_b = borders_i[upto_b.clamp(max=len(num_tokens_i))] == ends_b
        if not bool(at_border_b.all() & (ends_b[-1] == borders_i[-1])):
            raise ModelInputError(
                f"input_ids: expected image placeholders for {_described(num_tokens_i)}, "
                f"got {counts_b.tolist()} in the rows"
            )
        num_images_b = upto_b.diff(prepend=upto_b.new_zeros(1))
        rank_k = torch.arange(int(num_images_b.max()), device=device)
        has_image_bk = rank_k < num_images_b[:, None]
        return cls(
            is_visual_bt=is_visual_bt,
            num_before_bt=is_visual_bt.cumsum(1) - is_visual_bt.long(),
            num_placeholders_b=counts_b,
            num_images_b=num_images_b,
            image_of_bk=((upto_b - num_images_b)[:, None] + rank_k) * has_image_bk,
            has_image_bk=has_image_bk,
            borders_i=borders_i,
        )

    def text_index(self) -> tuple[Tensor, Tensor]:
        """Sequence index of each row's text tokens in order, [B, S], and False where a row has fewer, [B, S].

        The filler points at placeholders.
        """
        order_bt = self.is_visual_bt.long().argsort(dim=1, stable=True)
        num_text_b = self.is_visual_bt.shape[1] - self.num_placeholders_b
        rank_s = torch.arange(int(num_text_b.max()), device=order_bt.device)
        return order_bt[:, : rank_s.numel()], rank_s < num_text_b[:, None]

    def num_skipped_b(self, num_visual: int) -> Tensor:
        """Visual tokens that each row's images lost, where an image had `num_visual`."""
        return self.num_images_b * num_visual - self.num_placeholders_b

    def uncompressed_positions(self, position_ids_bt: Tensor, places_i: Sequence[Tensor], num_visual: int) -> Tensor:
        """Positions the same tokens have beside uncompressed images, [B, T].

        Every image before a token adds what it lost to the token's position; a visual token stands
        where the token of N is that it stands for. Works on packed positions too: all that matters
        is which placeholders come before a token in its row, and they all stand in the shared prefix.

        Args:
            position_ids_bt: Contiguous positions, restarting after the prefix in packed rows.
            places_i: Which of the N visual tokens each token stands for, [M_i] of each image.
            num_visual: N.
        """
        first_b1 = (self.num_placeholders_b.cumsum(0) - self.num_placeholders_b)[:, None]
        # Placeholders of the batch up to each token, and the images that are complete by then.
        rank_bt = first_b1 + self.num_before_bt
        num_done_bt = torch.searchsorted(self.borders_i, rank_bt, right=True) - 1
        num_done_before_b1 = torch.searchsorted(self.borders_i, first_b1, right=True) - 1
        shift_bt = (num_done_bt - num_done_before_b1) * num_visual - (self.borders_i[num_done_bt] - first_b1)
        within_bt = rank_bt - self.borders_i[num_done_bt]
        # One entry too many, so that text after the last image has something to look up.
        place_p = torch.cat([*places_i, self.borders_i.new_zeros(1)])
        return position_ids_bt + shift_bt + torch.where(self.is_visual_bt, place_p[rank_bt] - within_bt, 0)


def contiguous_positions(
    attention_mask: Tensor | None, num_tokens: int, num_past: int | Tensor, device: torch.device
) -> Tensor:
    """Positions [B or 1, T] of new tokens: their count among all that the 2-D mask keeps.

    A mask may be longer than there are tokens beside a static cache, whose `num_past` is a tensor.
    """
    place_t = torch.arange(num_tokens, device=device) + num_past
    if attention_mask is None or attention_mask.ndim != 2:
        return place_t[None]
    counted = (attention_mask.long().cumsum(1) - 1).clamp(min=0)
    return counted.index_select(1, place_t) if isinstance(num_past, Tensor) else counted[:, -num_tokens:]


def _described(num_tokens_i: Sequence[int]) -> str:
    if len(set(num_tokens_i)) <= 1:
        each = f" of {num_tokens_i[0]} tokens each" if num_tokens_i else ""
        return f"{len(num_tokens_i)} images{each}"
    return f"images of {list(num_tokens_i)} tokens"
