"""Compressors by the names that schedules use."""

from stagetrain.compressors.attention_drop import AttentionDrop
from stagetrain.compressors.average import AveragePool, GridAveragePool
from stagetrain.compressors.compressor import Compressor
from stagetrain.compressors.k_means import KMeans
from stagetrain.compressors.q_former import BaseQueryTransformer, QueryTransformer
from stagetrain.compressors.random_drop import RandomDrop
from stagetrain.compressors.vcc import TokenCentric
from stagetrain.errors import UnknownCompressorError

_KINDS: tuple[type[Compressor], ...] = (
    AveragePool,
    GridAveragePool,
    RandomDrop,
    KMeans,
    AttentionDrop,
    TokenCentric,
    QueryTransformer,
    BaseQueryTransformer,
)
_COMPRESSORS = {kind.name: kind for kind in _KINDS}

COMPRESSORS = tuple(_COMPRESSORS)
"""Every name."""


def compressor_named(name: str) -> Compressor:
    """The compressor `name`.

    Raises:
        UnknownCompressorError: There is none.
    """
    if name not in _COMPRESSORS:
        raise UnknownCompressorError(f"compressor: expected one of {', '.join(COMPRESSORS)}, got {name!r}")
    return _COMPRESSORS[name]()
