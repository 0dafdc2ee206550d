"""The text that generated tokens add, token by token."""

from typing import Any

_PARTIAL = "\ufffd"
_LONGEST = 16
"""Tokens of a window that is decoded anew for each token."""


class TextStream:
    """Text added by each token; the pieces joined equal the decoded whole.

    A token can end inside a character; its bytes then show as U+FFFD and are held back until the
    next token completes them or the answer ends. Only the end of the answer is decoded for each
    token, from far enough back that what a tokenizer does to the start of a text is the same in
    both decodings compared.
    """

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self._token_ids: list[int] = []
        self._start = 0
        self._known = ""
        self.text = ""

    def push(self, token_id: int, *, last: bool) -> str:
        """Takes one token and gives the text that is certain now."""
        self._token_ids.append(token_id)
        window = self._decoded(self._start, len(self._token_ids))
        if not window.startswith(self._known) or (window.endswith(_PARTIAL) and not last):
            return ""
        added, self._known = window[len(self._known) :], window
        self.text += added
        if len(self._token_ids) - self._start >= _LONGEST:
            self._narrow()
        return added

    def _narrow(self) -> None:
        """Starts the next window at the newest tokens that have text of their own."""
        end = len(self._token_ids)
        for start in range(end - 1, self._start, -1):
            known = self._decoded(start, end)
            if known and _PARTIAL not in known:
                self._start, self._known = start, known
                return

    def _decoded(self, start: int, end: int) -> str:
        return str(
            self._tokenizer.decode(
                self._token_ids[start:end], skip_special_tokens=True, clean_up_tokenization_spaces=False
            )
        )
