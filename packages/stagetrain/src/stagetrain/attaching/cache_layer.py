"""The layer of a KV cache from which on keys are compressed.

It knows which token stands for each of its keys, so that masks of later calls can be cut to them. Being a
layer of the cache it goes through beam search, batch selection, cropping and copying like all others.
"""

from dataclasses import dataclass
from typing import Any

import torch
from transformers.cache_utils import Cache, DynamicLayer

from stagetrain.errors import PoolingUnsupportedError
from stagetrain.schedules.setting import CompressionSetting


@dataclass(frozen=True, slots=True)
class Keys:
    """Keys that a compressed layer sees.

    Attributes:
        num_tokens: Tokens they were made of.
        columns: Token standing for each key, [B, Q] int64.
        real: Which keys are not padding, [B, Q] bool.
    """

    num_tokens: int
    columns: torch.Tensor
    real: torch.Tensor

    def extended(self, columns: torch.Tensor, real: torch.Tensor, num_tokens: int) -> "Keys":
        """With the keys of `num_tokens` more tokens; `columns` count from the first of those."""
        return Keys(
            self.num_tokens + num_tokens,
            torch.cat([self.columns, columns + self.num_tokens], 1),
            torch.cat([self.real, real], 1),
        )


class CompressedLayer(DynamicLayer):
    """Layer `setting.layer` of a cache begun under `setting`.

    As layer 0 it tells the number of tokens, not of keys, for that is what positions and masks are counted by.
    """

    def __init__(self, setting: CompressionSetting) -> None:
        super().__init__()
        self.setting = setting
        self.seen: Keys | None = None
        self._next: Keys | None = None

    def announce(self, keys: Keys) -> None:
        """Says what the layer's keys will be after the next update."""
        self._next = keys

    def update(self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        """See `DynamicLayer.update`.

        Raises:
            PoolingUnsupportedError: The model does not compress as it did when the cache was begun.
        """
        if self._next is None:
            raise PoolingUnsupportedError(f"pooling: expected a cache begun without compression, got {self.setting}")
        self.seen, self._next = self._next, None
        return super().update(key_states, value_states, *args, **kwargs)

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """See `DynamicLayer.get_mask_sizes`."""
        return super().get_seq_length() + query_length, 0

    def get_seq_length(self) -> int:
        """Keys; in layer 0 tokens."""
        if self.setting.layer == 0:
            return 0 if self.seen is None else self.seen.num_tokens
        return super().get_seq_length()

    def reset(self) -> None:
        """See `DynamicLayer.reset`."""
        self.seen = self._next = None
        super().reset()

    def crop(self, tokens_to_remove: int) -> None:
        """See `DynamicLayer.crop`.

        Raises:
            PoolingUnsupportedError: A token to be removed shares its key with others.
        """
        removed = abs(tokens_to_remove)
        if self.seen is not None and removed:
            left = self.seen.num_tokens - removed
            alone = torch.arange(left, self.seen.num_tokens, device=self.seen.columns.device)
            if not bool(((self.seen.columns[:, -removed:] == alone) & self.seen.real[:, -removed:]).all()):
                raise PoolingUnsupportedError(f"pooling: expected text to crop, got {removed} tokens with visual ones")
            self.seen = Keys(left, self.seen.columns[:, :-removed], self.seen.real[:, :-removed])
        super().crop(tokens_to_remove)

    def reorder_cache(self, beam_idx: torch.LongTensor) -> None:
        """See `DynamicLayer.reorder_cache`."""
        super().reorder_cache(beam_idx)
        self._take(beam_idx)

    def batch_select_indices(self, indices: torch.Tensor) -> None:
        """See `DynamicLayer.batch_select_indices`."""
        super().batch_select_indices(indices)
        self._take(indices)

    def batch_repeat_interleave(self, repeats: int) -> None:
        """See `DynamicLayer.batch_repeat_interleave`."""
        super().batch_repeat_interleave(repeats)
        if self.seen is not None:
            rows = torch.arange(len(self.seen.columns), device=self.seen.columns.device)
            self._take(rows.repeat_interleave(repeats))

    def _take(self, rows: torch.Tensor) -> None:
        if self.seen is not None:
            rows = rows.to(self.seen.columns.device)
            self.seen = Keys(self.seen.num_tokens, self.seen.columns[rows], self.seen.real[rows])


def compressed_layer(cache: Cache, setting: CompressionSetting, num_seen: int, num_rows: int) -> CompressedLayer:
    """The layer of a cache that `setting` compresses; put there if the cache is empty.

    Raises:
        PoolingUnsupportedError: The cache was begun under another setting, with other rows, or cannot hold layers
            of different length.
    """
    index, layers = setting.layer, cache.layers
    found = next((layer for layer in layers if isinstance(layer, CompressedLayer)), None)
    if found is not None and found.setting != setting and num_seen == 0:
        layers[layers.index(found)], found = DynamicLayer(), None
    if found is None and num_seen == 0 and index <= len(layers):
        kind = type(layers[index]) if index < len(layers) else cache.layer_class_to_replicate
        if kind is not DynamicLayer:
            raise PoolingUnsupportedError(
                f"pooling: expected a cache of DynamicLayer, got {getattr(kind, '__name__', kind)}"
            )
        found = CompressedLayer(setting)
        layers[index : index + 1] = [found]
    begun = "no compression" if found is None else str(found.setting)
    seen = found.seen if found is not None else None
    tokens, rows = (num_seen, num_rows) if seen is None else (seen.num_tokens, len(seen.columns))
    if (
        found is None
        or found.setting != setting
        or (num_seen and seen is None)
        or (tokens, rows) != (num_seen, num_rows)
    ):
        raise PoolingUnsupportedError(
            f"pooling: expected a cache begun with {setting} that holds {num_seen} tokens in {num_rows} rows, got one"
            f" begun with {begun} that holds {tokens} in {rows}"
        )
    return found
