"""Figures of a whole pack, as its manifest holds them."""

from dataclasses import dataclass

from quantpack.recipe import Recipe
from quantpack.scheme import Scheme


@dataclass(frozen=True, kw_only=True, slots=True)
class QuantizedModel:
    """The scheme, the number of codes, and their bytes at two a byte and after compression.

    Attributes:
        scheme: Of every weight, or the recipe's default.
        num_codes: Quantized weights.
        code_bytes_packed: At two a byte.
        code_bytes_compressed: In their frames.
        recipe: What was done, without the schemes of single weights, which the index has; None: every weight
            was rounded to nearest under `scheme`.
    """

    scheme: Scheme
    num_codes: int
    code_bytes_packed: int
    code_bytes_compressed: int
    recipe: Recipe | None = None
