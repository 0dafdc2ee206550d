"""The text that generated tokens add, token by token."""

from collections.abc import Callable
from typing import Any

from transformers import TokenizersBackend

_PARTIAL = "\ufffd"
_WINDOW = 16
"""Tokens of a window that is decoded anew for each token."""
_TRIES = 4


class TextStream:
    """Text added by each token; the pieces joined equal the decoded whole, as long as it is valid text.

    A token can end inside a character; its bytes then show as U+FFFD and are held back until the
    next token completes them or the answer ends. Only the end of the answer is decoded for each
    token, from far enough back that what a tokenizer does to the start of a text is the same in
    both decodings compared.
    """

    def __init__(self, tokenizer: Any) -> None:
        self._decode = _decoder(tokenizer)
        self._token_ids: list[int] = []
        self._start = 0
        self._longest = _WINDOW
        self._known = ""
        self.text = ""

    def push(self, token_id: int, *, last: bool) -> str:
        """Takes one token and gives the text that is certain now."""
        self._token_ids.append(token_id)
        window = self._decoded(self._start, len(self._token_ids))
        if window.endswith(_PARTIAL) and not last:
            return ""
        # What was known may be rewritten by bytes that are no text together; what comes after still counts.
        added, self._known = window[len(self._known) :], window
        self.text += added
        if len(self._token_ids) - self._start >= self._longest:
            self._narrow()
        return added

    def _narrow(self) -> None:
        """Starts the next window at the newest tokens that have text of their own."""
        end = len(self._token_ids)
        for start in range(end - 1, end - 1 - _TRIES, -1):
            known = self._decoded(start, end)
            if known and _PARTIAL not in known:
                self._start, self._known, self._longest = start, known, _WINDOW
                return
        # Special tokens have no text; the window goes on for a while.
        self._longest += _WINDOW

    def _decoded(self, start: int, end: int) -> str:
        return self._decode(self._token_ids[start:end])


def _decoder(tokenizer: Any) -> Callable[[list[int]], str]:
    """The text of token ids, without special tokens and without corrections.

    What a tokenizer does around its backend's own decoding takes ten times as long as that, and is
    left out where it changes nothing.
    """
    if isinstance(tokenizer, TokenizersBackend) and type(tokenizer)._decode is TokenizersBackend._decode:
        backend = tokenizer.backend_tokenizer
        return lambda token_ids: str(backend.decode(token_ids, skip_special_tokens=True))
    return lambda token_ids: str(
        tokenizer.decode(token_ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
    )
