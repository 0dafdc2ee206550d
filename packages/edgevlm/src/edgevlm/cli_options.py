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
    CONV = "conv"
    MAXPOOL = "maxpool"
    NONE = "none"


class FusionOrder(StrEnum):
    """How combined fusion joins its branches."""

    SERIAL = "serial"
    PARALLEL = "parallel"


class Positions(StrEnum):
    """Where the tokens that the language model sees stand."""

    CONTIGUOUS = "contiguous"
    UNCOMPRESSED = "uncompressed"


class Initialisation(StrEnum):
    """Of the connectors."""

    SCALED = "scaled"
    NORMAL = "normal"


class Dtype(StrEnum):
    """Types of weights."""

    FLOAT32 = "float32"
    BFLOAT16 = "bfloat16"
