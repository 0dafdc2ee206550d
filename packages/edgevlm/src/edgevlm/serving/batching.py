"""Continuous batching: requests join a running batch and leave it between any two tokens. No threads here.

A request is prefilled, with others or alone. As long as it is the only one it decodes on the cache its prefill
made; with others its row is copied into one `RaggedCache`, and all rows take one token in one forward. A model
whose cache cannot be split into such rows decodes row by row in the same loop, and one of an unknown kind
serves one request at a time.
"""

import itertools
import time
from collections import deque
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from edgevlm.serving.abilities import SHARED_INPUTS, may_interleave, may_prefill_together
from edgevlm.serving.decoding import decode_row, decode_rows
from edgevlm.serving.events import BatchEvent, Failed, FinishReason
from edgevlm.serving.loaded_model import LoadedModel
from edgevlm.serving.prefilling import prefill_row, prefill_rows
from edgevlm.serving.preparing import Prepared
from edgevlm.serving.ragged_cache import RaggedCache, is_plain
from edgevlm.serving.row import Row
from edgevlm.serving.sampling import next_tokens

DEFAULT_BATCH_SIZE = 64
DEFAULT_PREFILL_TOKENS = 2048
MAX_PADDING = 1.25
"""Most tokens of a shared prefill, padding included, for each that is not padding."""

Handle = int
Events = list[tuple[Handle, BatchEvent]]


class Batcher:
    """Serves many requests with one model; for one thread at a time.

    Args:
        engine: The model and what belongs to it.
        max_batch_size: Most requests that decode at a time; further ones wait.
        max_prefill_tokens: Most padded tokens of one prefill of several prompts, which those who decode wait for.
    """

    def __init__(
        self,
        engine: LoadedModel,
        max_batch_size: int = DEFAULT_BATCH_SIZE,
        max_prefill_tokens: int = DEFAULT_PREFILL_TOKENS,
    ) -> None:
        self._engine = engine
        self._model: Any = engine.model
        self._max_rows = max_batch_size if may_interleave(engine.model) else 1
        self._max_prefill_tokens = max_prefill_tokens
        self._numbers = itertools.count()
        self._waiting: deque[Row] = deque()
        # Rows with a cache of their own, and those that are rows of `_cache`, in its order.
        self._apart: list[Row] = []
        self._joined: list[Row] = []
        self._cache = RaggedCache()

    @property
    def has_work(self) -> bool:
        """Whether a request waits or decodes."""
        return bool(self._waiting or self._apart or self._joined)

    @property
    def num_running(self) -> int:
        """Requests that hold a slot."""
        return len(self._apart) + len(self._joined)

    @property
    def num_waiting(self) -> int:
        """Requests without a slot."""
        return len(self._waiting)

    @property
    def cache_bytes(self) -> int:
        """Memory of the rows that decode together."""
        return self._cache.num_bytes

    def submit(self, prepared: Prepared) -> Handle:
        """Takes a request; its events come out of `step` under the given handle."""
        row = Row(next(self._numbers), prepared, self._engine)
        self._waiting.append(row)
        return row.handle

    @torch.inference_mode()
    def cancel(self, handle: Handle) -> None:
        """Forgets a request and frees its slot; no more events come. Nothing happens when it has ended."""
        for row in (*self._waiting, *self._apart, *self._joined):
            if row.handle == handle:
                self._forget(row)
                return

    def clear(self) -> list[Handle]:
        """Forgets all requests; gives their handles."""
        rows = (*self._waiting, *self._apart, *self._joined)
        self._waiting.clear()
        self._apart, self._joined, self._cache = [], [], RaggedCache()
        return [row.handle for row in rows]

    @torch.inference_mode()
    def step(self) -> Events:
        """One more token of every running request, then the first tokens of waiting ones in free slots.

        Each request's events end with a Finish or a Failed.
        """
        events: Events = []
        self._expire(events)
        self._decode_joined(events)
        for row in list(self._apart):
            self._decode_apart(row, events)
        self._admit(events)
        if self.num_running > 1:
            self._join_plain()
        return events

    def _expire(self, events: Events) -> None:
        now_s = time.monotonic()
        for row in (*self._waiting, *self._apart, *self._joined):
            if row.prepared.deadline_s is not None and now_s >= row.prepared.deadline_s:
                self._forget(row)
                events.append((row.handle, row.finish(FinishReason.DEADLINE)))

    def _decode_joined(self, events: Events) -> None:
        if not self._joined:
            return
        rows = list(self._joined)
        try:
            logits = decode_rows(self._model, [row.last_token for row in rows], self._cache)
        except Exception as error:
            # Nobody's cache is whole any more.
            self._joined, self._cache = [], RaggedCache()
            events += [(row.handle, Failed(error=error)) for row in rows]
            return
        self._take(rows, logits, events)

    def _decode_apart(self, row: Row, events: Events) -> None:
        try:
            logits = decode_row(self._model, row.last_token, row.cache)
        except Exception as error:
            self._fail(row, error, events)
            return
        self._take([row], logits[None], events)

    def _admit(self, events: Events) -> None:
        """Prefills waiting requests into free slots, at most `max_prefill_tokens` in one step."""
        num_left = self._max_prefill_tokens
        together = len(self._waiting) > 1 and may_prefill_together(self._model)
        while self._waiting and self.num_running < self._max_rows and num_left > 0:
            group = self._next_group(num_left) if together else [self._waiting[0]]
            num_left -= len(group) * max(row.prepared.num_tokens for row in group)
            for row in group:
                self._waiting.remove(row)
            if len(group) > 1 and self._prefill_together(group, events):
                continue
            for row in group:
                self._prefill_alone(row, events)

    def _next_group(self, max_tokens: int) -> list[Row]:
        """The longest waiting request and those that can share its prefill without much padding, in their order."""
        group = [self._waiting[0]]
        kind, longest = _kind(group[0]), group[0].prepared.num_tokens
        num_real = longest
        if kind is None:
            return group
        for row in itertools.islice(self._waiting, 1, None):
            if len(group) + self.num_running >= self._max_rows:
                break
            other, num_tokens = _kind(row), row.prepared.num_tokens
            num_padded = (len(group) + 1) * max(longest, num_tokens)
            fits = num_padded <= min(max_tokens, MAX_PADDING * (num_real + num_tokens))
            if fits and other is not None and (not kind or not other or kind == other):
                group.append(row)
                kind, longest, num_real = kind or other, max(longest, num_tokens), num_real + num_tokens
        return group

    def _prefill_together(self, group: list[Row], events: Events) -> bool:
        """Whether it worked; if not, each row is to be tried alone, so that only a bad one fails."""
        try:
            logits, cache = prefill_rows(self._model, [row.prepared.inputs for row in group])
        except Exception:
            return False
        if not is_plain(cache):
            return False
        for row in group:
            row.begin(None)
        self._cache.join(cache, [row.prepared.num_tokens for row in group])
        self._joined += group
        self._take(group, logits, events)
        return True

    def _prefill_alone(self, row: Row, events: Events) -> None:
        try:
            logits, cache = prefill_row(self._model, row.prepared.inputs)
        except Exception as error:
            events.append((row.handle, Failed(error=error)))
            return
        row.begin(cache)
        self._apart.append(row)
        self._take([row], logits[None], events)

    def _join_plain(self) -> None:
        """Rows that can decode together do, now that there are several."""
        plain = [row for row in self._apart if is_plain(row.cache)]
        if len(plain) + len(self._joined) < 2:
            return
        for row in plain:
            self._cache.join(row.cache, [row.cache.get_seq_length()])
            row.cache = None
            self._apart.remove(row)
            self._joined.append(row)

    def _take(self, rows: Sequence[Row], logits_bv: Tensor, events: Events) -> None:
        """Chooses each row's next token; rows that end leave."""
        for row, chosen in zip(rows, next_tokens(logits_bv, [row.sampler for row in rows]), strict=True):
            if isinstance(chosen, Exception):
                self._fail(row, chosen, events)
                continue
            events.append((row.handle, row.take(chosen)))
            if row.ended is not None:
                self._forget(row)
                events.append((row.handle, row.finish(row.ended)))

    def _fail(self, row: Row, error: Exception, events: Events) -> None:
        self._forget(row)
        events.append((row.handle, Failed(error=error)))

    def _forget(self, row: Row) -> None:
        if row in self._joined:
            index = self._joined.index(row)
            moved = self._cache.leave(index)
            self._joined[index] = self._joined[moved]
            self._joined.pop()
        elif row in self._apart:
            self._apart.remove(row)
        else:
            self._waiting.remove(row)


def _kind(row: Row) -> tuple[Any, ...] | None:
    """What rows of one prefill must share: shapes of their images; empty without images, None: not to be shared."""
    inputs = row.prepared.inputs
    if not inputs.keys() <= SHARED_INPUTS:
        return None
    return tuple(sorted((name, tuple(value.shape[1:])) for name, value in inputs.items() if name != "input_ids"))
