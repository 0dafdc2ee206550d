"""How many tokens have logits at once."""

from collections.abc import Iterator

DEFAULT_LOGITS_BYTES = 256 * 2**20
"""Room for everything with a vocabulary axis that exists at once."""


def token_chunks(
    num_tokens: int, *, num_words: int, num_arrays: int, itemsize: int, logits_bytes: int
) -> Iterator[slice]:
    """Slices that together cover the tokens; at least one token each, even where its arrays need more room.

    Args:
        num_tokens: N.
        num_words: V.
        num_arrays: Arrays [n, V] that a chunk of n tokens needs at once.
        itemsize: Bytes of an element.
        logits_bytes: Room for all of them together.
    """
    step = max(1, logits_bytes // (num_arrays * num_words * itemsize))
    return (slice(start, min(start + step, num_tokens)) for start in range(0, num_tokens, step))
