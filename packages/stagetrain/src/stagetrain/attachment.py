"""Pools visual tokens inside a model's decoder."""

from typing import Any

from stagetrain.errors import PoolingUnsupportedError


class Compressor:
    """Handle."""

    def set(self, layer: int, stride: int) -> None:
        """Pools."""

    def clear(self) -> None:
        """Stops."""

    def detach(self) -> None:
        """Stops."""


def attach(model: Any) -> Compressor:
    """Not yet."""
    raise PoolingUnsupportedError("pooling: not there yet")
