"""Python's garbage collector in a server.

A full collection walks all that is in memory, and nothing else runs meanwhile: a third of a second for what torch and
transformers keep. So what stays is taken out of it.
"""

import gc
from collections.abc import Iterator
from contextlib import contextmanager


def keep() -> None:
    """Takes all that is in memory now out of later collections."""
    gc.collect()
    gc.freeze()


@contextmanager
def growing() -> Iterator[None]:
    """A block that brings what stays: keeps all when it ends, but for what meanwhile nobody uses any more."""
    gc.unfreeze()
    try:
        yield
    finally:
        keep()
