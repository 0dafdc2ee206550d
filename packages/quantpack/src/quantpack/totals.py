"""Figures of a whole pack, as its manifest holds them."""

from dataclasses import dataclass

from quantpack.container.index import Index
from quantpack.container.nibbles import packed_bytes
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


def totals(index: Index) -> QuantizedModel:
    """What the manifest says of a pack besides the recipe, from its index."""
    return QuantizedModel(
        scheme=index.scheme,
        num_codes=sum(entry.num_weights for entry in index.quantized),
        code_bytes_packed=sum(packed_bytes(entry.num_weights) for entry in index.quantized),
        code_bytes_compressed=sum(sum(entry.frame_bytes) for entry in index.quantized),
    )
