"""Weights of the losses of answers and of reconstruction."""

import math
from typing import Any

from edgevlm.errors import ModelInputError


def check_reconstruction(config: Any) -> None:
    """Refuses weights of losses that are not possible.

    Raises:
        ModelInputError: Names the field.
    """
    for name in ("reconstruction_loss_weight", "text_loss_weight"):
        value = getattr(config, name)
        if not (value >= 0 and math.isfinite(value)):
            raise ModelInputError(f"{name}: expected a number from 0, got {value}")
    if config.reconstruction != "none" and config.compressor == "none":
        raise ModelInputError(f"reconstruction: expected none without a compressor, got {config.reconstruction!r}")
