"""KV cache of a batch whose rows have lengths of their own and come and go between two decode steps.

Every row begins at slot 0 and ends at its own length, so a new token of one row stands at another slot
than that of the next; a mask of the slots in use keeps rows apart from what lies beyond their ends.

Shapes: n rows, H key-value heads, L slots of the longest row, h features of a head.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache, CacheLayerMixin, DynamicLayer

from edgevlm.model.fusion_cache import FusionState
from edgevlm.serving.ragged import RaggedRows
from edgevlm.serving.ragged_fusion import RaggedFusionState


@dataclass(slots=True)
class _Step:
    """Where the next token of each row goes; shared by all layers.

    Attributes:
        slots_n: Slot of each row's new token, int64 [n].
        num_before: Tokens of the longest row before it.
    """

    slots_n: Tensor = field(default_factory=lambda: torch.zeros(0, dtype=torch.long))
    num_before: int = 0


class RaggedLayer(CacheLayerMixin):
    """Keys and values of one decoder layer, [n, H, L, h]; takes one new token of every row at a time."""

    supports_early_init = False

    def __init__(self, step: _Step) -> None:
        super().__init__()
        self.parts = (RaggedRows(axis=2), RaggedRows(axis=2))
        self._step = step
        self.is_initialized = True

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Writes each row's new key and value [n, H, 1, h], and gives all of them up to the longest row's."""
        whole = []
        for part, new in zip(self.parts, (key_states, value_states), strict=True):
            part.write(self._step.slots_n, new)
            whole.append(part.view(len(new), self._step.num_before + 1))
        return whole[0], whole[1]

    def get_seq_length(self) -> int:
        """Tokens of the longest row."""
        return self._step.num_before

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Keys of the longest row with its new token, and no offset."""
        return self._step.num_before + query_length, 0

    def get_max_length(self) -> int:
        """No limit."""
        return -1

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Nothing to do: rows bring what they need."""


class RaggedCache(Cache):
    """The cache of a running batch: rows 0 to n - 1, in no particular order."""

    def __init__(self) -> None:
        super().__init__(layers=[])
        self.lengths: list[int] = []
        self._step = _Step()

    @property
    def num_bytes(self) -> int:
        """Memory held for keys, values and the fusion's state."""
        fusion = 0 if self._fusion is None else self._fusion.num_bytes
        return fusion + sum(part.num_bytes for layer in self._plain for part in layer.parts)

    def join(self, cache: Cache, lengths: Sequence[int]) -> None:
        """Takes a copy of the rows of a prefill's cache; they come after those that are here.

        Args:
            cache: Plain, as `is_plain` says; tokens of a row begin at its slot 0.
            lengths: Tokens of each row that count; padding follows them.
        """
        row = len(self.lengths)
        state = next((layer for layer in cache.layers if isinstance(layer, FusionState)), None)
        sources: list[Any] = [layer for layer in cache.layers if layer is not state]
        if not self.layers:
            self.layers = [RaggedLayer(self._step) for _ in sources]
            self.layers += [] if state is None else [RaggedFusionState()]
        for layer, source in zip(self._plain, sources, strict=True):
            for part, whole in zip(layer.parts, (source.keys, source.values), strict=True):
                part.put(row, whole, lengths)
        if self._fusion is not None:
            assert state is not None
            self._fusion.join(state, lengths)
        self.lengths += lengths

    def leave(self, row: int) -> int:
        """Forgets a row; the last one takes its place, and its former row is given."""
        last = len(self.lengths) - 1
        self.lengths[row] = self.lengths[last]
        self.lengths.pop()
        longest = max(self.lengths, default=0)
        for part in (part for layer in self._plain for part in layer.parts):
            if row != last:
                part.move(last, row)
            part.shrink(last, longest + 1)
        if self._fusion is not None:
            self._fusion.leave(row)
        if not last:
            self.layers = []
        return last

    def begin_step(self, device: torch.device) -> tuple[Tensor, Tensor | None]:
        """Makes room for one new token of every row.

        Returns:
            Positions [n, 1], and which slots each row uses, bool [n, L + 1]; None: all of them.
        """
        self._step.slots_n = torch.tensor(self.lengths, device=device)
        self._step.num_before = longest = max(self.lengths)
        for part in (part for layer in self._plain for part in layer.parts):
            part.reserve(len(self.lengths), longest + 1)
        positions = self._step.slots_n[:, None]
        mask = None if min(self.lengths) == longest else torch.arange(longest + 1, device=device) <= positions
        self.lengths = [length + 1 for length in self.lengths]
        return positions, mask

    @property
    def _plain(self) -> list[RaggedLayer]:
        return [layer for layer in self.layers if isinstance(layer, RaggedLayer)]

    @property
    def _fusion(self) -> RaggedFusionState | None:
        return next((layer for layer in self.layers if isinstance(layer, RaggedFusionState)), None)


def is_plain(cache: Any) -> bool:
    """Whether a prefill's cache is one that rows can leave for a `RaggedCache`: full attention in every layer."""
    if not isinstance(cache, Cache) or not cache.layers:
        return False
    layers: list[Any] = [layer for layer in cache.layers if not isinstance(layer, FusionState)]
    if not all(type(layer) is DynamicLayer and layer.keys is not None for layer in layers):
        return False
    return len({layer.get_seq_length() for layer in layers}) == 1
