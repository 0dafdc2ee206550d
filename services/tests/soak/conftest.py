"""Soak tests run with small counts everywhere, and in full when VLMPRESS_SOAK=1 (`tox run -e soak`)."""

import os
from collections.abc import Callable

import pytest


@pytest.fixture(scope="session")
def count() -> Callable[[int, int], int]:
    """`count(full, small)`: how often to do something."""
    full_asked = os.environ.get("VLMPRESS_SOAK") == "1"
    return lambda full, small: full if full_asked else small
