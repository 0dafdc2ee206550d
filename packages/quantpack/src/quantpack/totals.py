"""Figures of a whole pack, as its manifest holds them."""

from dataclasses import dataclass

from quantpack.scheme import Scheme


@dataclass(frozen=True, kw_only=True, slots=True)
class QuantizedModel:
    """The scheme, the number of codes, and their bytes at two a byte and after compression."""

    scheme: Scheme
    num_codes: int
    code_bytes_packed: int
    code_bytes_compressed: int
