"""What the fusion module must remember between prefill and decode, kept in the model's KV cache.

It is one more layer of the cache after the language model's, so that beam search, batch selection
and the like act on it as on every other layer.
"""

from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache, CacheLayerMixin

from edgevlm.model.layout import Layout

_COUNTS = ("num_placeholders_b", "num_images_b", "num_skipped_b")


class FusionState(CacheLayerMixin):
    """State of the rows of a batch; B is the first axis of every tensor.

    Attributes:
        num_placeholders_b: Placeholders of each row's prompt.
        num_images_b: Images of each row's prompt.
        num_skipped_b: Positions that each row's images have beyond their placeholders.
        tensors: Named state of the fusion's parts: keys and values, validity of keys.
        dense: Whether every key of every row is valid, so that one new token needs no mask.
    """

    is_compileable = False
    is_croppable = False

    def __init__(self, num_placeholders_b: Tensor, num_images_b: Tensor, num_skipped_b: Tensor) -> None:
        super().__init__()
        self.num_placeholders_b = num_placeholders_b
        self.num_images_b = num_images_b
        self.num_skipped_b = num_skipped_b
        self.tensors: dict[str, Tensor] = {}
        self.dense = False
        self.is_initialized = True

    @classmethod
    def of(cls, layout: Layout, num_visual: int) -> "FusionState":
        """The empty state of a prompt with images of `num_visual` uncompressed tokens."""
        return cls(layout.num_placeholders_b, layout.num_images_b, layout.num_skipped_b(num_visual))

    @classmethod
    def find(cls, cache: Cache | None) -> "FusionState | None":
        """The state that travels in a cache, if any."""
        return next((layer for layer in reversed(cache.layers) if isinstance(layer, cls)), None) if cache else None

    def grow(self, name: str, new: Tensor, *, dim: int) -> Tensor:
        """Appends along `dim` to what is kept under `name`, and gives the whole."""
        kept = self.tensors.get(name)
        self.tensors[name] = new if kept is None else torch.cat((kept, new), dim=dim)
        return self.tensors[name]

    def _apply(self, change: Any) -> None:
        for name in _COUNTS:
            setattr(self, name, change(getattr(self, name)))
        self.tensors = {name: change(value) for name, value in self.tensors.items()}

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Takes the rows that beam search keeps."""
        self._apply(lambda value: value.index_select(0, beam_idx.to(value.device)))

    def batch_select_indices(self, indices: Tensor) -> None:
        """Keeps some rows."""
        self._apply(lambda value: value[indices])

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Repeats every row."""
        self._apply(lambda value: value.repeat_interleave(repeats, dim=0))

    def crop(self, tokens_to_remove: int) -> None:
        """Not possible: rows keep different numbers of text tokens.

        Raises:
            NotImplementedError: Always, unless nothing is removed.
        """
        if tokens_to_remove:
            raise NotImplementedError("an edge model's cache cannot be cropped")

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Nothing to do: the state is complete when it is made."""

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Not a layer of the language model.

        Raises:
            NotImplementedError: Always.
        """
        raise NotImplementedError("the fusion state is not a layer of the language model")

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """No mask is made for this layer."""
        return query_length, 0

    def get_seq_length(self) -> int:
        """It does not follow the sequence."""
        return 0

    def get_max_length(self) -> int:
        """No limit."""
        return -1

    def offload(self) -> None:
        """Small; stays where it is."""

    def prefetch(self) -> None:
        """Small; stays where it is."""

    def reset(self) -> None:
        """Forgets everything."""
        self._apply(torch.zeros_like)
        self.tensors = {}
