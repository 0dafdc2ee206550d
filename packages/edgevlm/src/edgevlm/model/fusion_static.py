"""The fusion's state beside a static cache: tensors of a fixed size, written in place, for compiled decode steps.

Shapes: B rows, S text tokens of the prompt, L text slots.
"""

import torch
from torch import Tensor
from transformers.cache_utils import Cache

from edgevlm.model.fusion_cache import TEXT_VALID, FusionState
from edgevlm.model.layout import Layout
from edgevlm.model.text_masks import valid_tokens


class StaticFusionState(FusionState):
    """State whose text slots are all there from the prompt on.

    A step reads no value of a tensor, so that it compiles into one graph, and none of its sizes change,
    so that it does so once.

    Args:
        num_placeholders_b: See `FusionState`.
        num_images_b: See `FusionState`.
        num_skipped_b: See `FusionState`.
        num_later: How many tokens may come after the prompt.
        num_prompt: Tokens of the prompt, padding included.
    """

    is_compileable = True
    is_croppable = False

    def __init__(
        self, num_placeholders_b: Tensor, num_images_b: Tensor, num_skipped_b: Tensor, num_later: int, num_prompt: int
    ) -> None:
        super().__init__(num_placeholders_b, num_images_b, num_skipped_b)
        self.num_later = num_later
        self.num_prompt = num_prompt
        self.num_prompt_text = 0
        # A tensor, because a number that changes with each step would be compiled in.
        self.num_text = torch.zeros((), dtype=torch.long, device=num_images_b.device)
        self._slots_s = self.num_text[None]
        self._first: dict[str, int] = {}

    def begin(self, text_valid_bs: Tensor) -> None:
        """See `FusionState.begin`; slots that are still empty keep the state from being dense."""
        self.append(TEXT_VALID, text_valid_bs, dim=1)
        self.num_prompt_text = text_valid_bs.shape[1]
        self.num_text.fill_(self.num_prompt_text)

    def text_mask(self, attention_mask: Tensor | None, num_new: int) -> Tensor | None:
        """See `FusionState.text_mask`; L counts the empty slots too, which no token sees."""
        self._slots_s = torch.arange(num_new, device=self.num_text.device) + self.num_text
        self.num_text.add_(num_new)
        places = self._slots_s + (self.num_prompt - self.num_prompt_text)
        valid = self.append(TEXT_VALID, valid_tokens(attention_mask, places, self.num_images_b.shape[0]), dim=1)
        slot_l = torch.arange(valid.shape[1], device=valid.device)
        earlier, itself = slot_l <= self._slots_s[:, None], slot_l == self._slots_s[:, None]
        return (valid[:, None] & earlier) | itself

    def append(self, name: str, new: Tensor, *, dim: int) -> Tensor:
        """Writes new text slots in place and gives all slots; with the prompt only those that are filled."""
        if name in self.axes:
            return self.tensors[name].index_copy_(dim, self._slots_s + self._first[name], new)
        whole = super().append(name, new, dim=dim)
        self._first[name] = whole.shape[dim] - new.shape[dim]
        empty = list(whole.shape)
        empty[dim] = self.num_later
        self.tensors[name] = torch.cat((whole, whole.new_zeros(empty)), dim=dim)
        if not torch.compiler.is_compiling():
            torch._dynamo.mark_static_address(self.tensors[name])
        return whole

    def crop(self, tokens_to_remove: int) -> None:
        """Not possible, as in transformers' own static layers.

        Raises:
            NotImplementedError: Always, unless nothing is removed.
        """
        if tokens_to_remove:
            raise NotImplementedError("a static cache cannot be cropped")


def fusion_state_for(cache: Cache | None, layout: Layout, num_visual: int) -> FusionState:
    """The empty state of a prompt with images of `num_visual` uncompressed tokens, static where the cache is."""
    counts = (layout.num_placeholders_b, layout.num_images_b, layout.num_skipped_b(num_visual))
    if cache is None or not cache.is_compileable or cache.get_max_length() < 0:
        return FusionState(*counts)
    num_prompt = layout.is_visual_bt.shape[1]
    return StaticFusionState(*counts, num_later=max(cache.get_max_length() - num_prompt, 0), num_prompt=num_prompt)
