"""How much the soak tests do: a little by default, all of it with VLMPRESS_SOAK=1."""

import os
from collections.abc import Callable

import pytest


@pytest.fixture
def count() -> Callable[[int, int], int]:
    """`count(full, small)`: how often to do something."""

    def choose(full: int, small: int) -> int:
        return full if os.environ.get("VLMPRESS_SOAK") == "1" else small

    return choose
