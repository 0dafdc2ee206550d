"""Choices that the commands offer."""

from enum import StrEnum


class Fusion(StrEnum):
    """Fusion modules of the paper."""

    NONE = "none"
    CROSS = "cross"
    DECODER = "decoder"
    COMBINED = "combined"


class Compressor(StrEnum):
    """Ways to fewer visual tokens."""

    MLP = "mlp"
    NONE = "none"


class Dtype(StrEnum):
    """Types of weights."""

    FLOAT32 = "float32"
    BFLOAT16 = "bfloat16"
