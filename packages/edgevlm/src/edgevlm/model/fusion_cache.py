"""What the fusion module must remember between prefill and decode, kept in the model's KV cache.

It is one more layer of the cache after the language model's, so that beam search, batch selection
and the like act on it as on every other layer.

Shapes: B rows, V visual tokens of a row before the compressor, L text tokens of a row so far.
"""

from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache, CacheLayerMixin

from edgevlm.errors import ModelInputError
from edgevlm.model.text_masks import next_text_mask

_COUNTS = ("num_placeholders_b", "num_images_b", "num_skipped_b")
TEXT_VALID = "text_valid"


class FusionState(CacheLayerMixin):
    """State of the rows of a batch, growing with its text; B is the first axis of every tensor.

    The prompt puts what follows from its images into `tensors` and calls `begin`. Each later forward
    calls `text_mask` once and then `append` for every part that remembers text. Other ways to keep
    text (preallocated, rows of different length) override these three and `crop`.

    A row has V slots for its visual tokens, then one slot for each text token; V and the number of
    text slots are the batch's. A prompt's rows with fewer text tokens end in slots that are not valid.

    Attributes:
        num_placeholders_b: Placeholders of each row's prompt.
        num_images_b: Images of each row's prompt.
        num_skipped_b: Positions that each row's images have beyond their placeholders.
        tensors: Named state of the fusion's parts; empty where no row has an image. "visual_valid" bool [B, V];
            "text_valid" bool [B, L]; "cross_keys.i", "cross_values.i" [B, H, V, h] of cross block i;
            "decoder_keys.i", "decoder_values.i" [B, H', V + L, h] of decoder layer i.
        axes: Axis of text slots in each tensor that has them.
        dense: Whether every key of every row is known to be valid, so that one new token needs no mask.
        filled: Whether a prompt is in; False after `reset`.
    """

    is_compileable = False
    is_croppable = True
    supports_early_init = False

    def __init__(self, num_placeholders_b: Tensor, num_images_b: Tensor, num_skipped_b: Tensor) -> None:
        super().__init__()
        self.num_placeholders_b = num_placeholders_b
        self.num_images_b = num_images_b
        self.num_skipped_b = num_skipped_b
        self.tensors: dict[str, Tensor] = {}
        self.axes: dict[str, int] = {}
        self.dense = False
        self.filled = True
        self.is_initialized = True

    @classmethod
    def find(cls, cache: Cache | None) -> "FusionState | None":
        """The state that travels in a cache, if any."""
        layers = [] if cache is None else cache.layers
        return next((layer for layer in layers if isinstance(layer, cls) and layer.filled), None)

    def put_into(self, cache: Cache) -> None:
        """Makes it the state that travels in a cache, in place of a former one."""
        cache.layers[:] = [layer for layer in cache.layers if not isinstance(layer, FusionState)]
        cache.layers.append(self)

    @property
    def has_images(self) -> bool:
        """Whether there is anything to fuse."""
        return "visual_valid" in self.tensors

    def begin(self, text_valid_bs: Tensor) -> None:
        """Takes the validity of the prompt's text, after its visual tokens."""
        self.append(TEXT_VALID, text_valid_bs, dim=1)
        self.dense = bool(self.tensors["visual_valid"].all() & text_valid_bs.all())

    def text_mask(self, attention_mask: Tensor | None, num_new: int) -> Tensor | None:
        """Admits `num_new` text tokens after the prompt and says which text each of them sees.

        Args:
            attention_mask: What the language model gets: None, [B, all tokens so far], or [B, 1, num_new, keys].
            num_new: New tokens of every row.

        Returns:
            bool [B, num_new, L], new tokens included; None: all of it.
        """
        earlier = self.tensors[TEXT_VALID]
        # A look into a mask would cost more than it saves: with one given, keys may be missing.
        self.dense = self.dense and attention_mask is None
        if self.dense and num_new == 1:
            self.append(TEXT_VALID, earlier.new_ones(earlier.shape[0], 1), dim=1)
            return None
        allowed, valid = next_text_mask(attention_mask, earlier, num_new)
        self.append(TEXT_VALID, valid, dim=1)
        return allowed

    def append(self, name: str, new: Tensor, *, dim: int) -> Tensor:
        """Appends new text slots along `dim` to what is kept under `name`, and gives the whole."""
        kept = self.tensors.get(name)
        self.tensors[name] = new if kept is None else torch.cat((kept, new), dim=dim)
        self.axes[name] = dim
        return self.tensors[name]

    def crop(self, tokens_to_remove: int) -> None:
        """Forgets the last text slots of every row.

        Args:
            tokens_to_remove: Their number as a negative one, as transformers counts.

        Raises:
            ModelInputError: It is positive, or more than there are.
        """
        if tokens_to_remove == 0 or not self.has_images:
            return
        num_kept = self.tensors[TEXT_VALID].shape[1] + tokens_to_remove
        if tokens_to_remove > 0 or num_kept < 0:
            num_text = num_kept - tokens_to_remove
            raise ModelInputError(f"crop: expected -{num_text} to 0 tokens to remove, got {tokens_to_remove}")
        for name, dim in self.axes.items():
            value = self.tensors[name]
            self.tensors[name] = value.narrow(dim, 0, value.shape[dim] + tokens_to_remove)

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
        """Forgets everything; the next prompt brings a state of its own."""
        self.tensors, self.axes, self.filled = {}, {}, False
