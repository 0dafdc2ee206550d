"""What is trained for each table."""

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from itertools import product

DATA = ("easy-vqa", "boards")
TOKENS = (16, 4, 1)
LLM = ("frozen", "trained")
FUSIONS = ("none", "cross", "decoder", "combined")
COMPRESSORS = ("mlp", "conv", "maxpool")
AIDS = ("none", "features", "pixels", "alone")
"""Reconstruction: none; features or pixels beside the answers; of features alone, before the answers."""
ORDERS = (("serial", 1), ("parallel", 1), ("serial", 2), ("parallel", 2))
"""Of a combined fusion: order and layers."""
TABLES = ("fusion", "compressors", "reconstruction", "orders")


@dataclass(frozen=True, kw_only=True, slots=True)
class Arm:
    """An edge model and how it is trained; `llm` says whether the language model trains too."""

    data: str
    tokens: int
    llm: str
    compressor: str = "mlp"
    fusion: str = "none"
    order: str = "serial"
    layers: int = 1
    aid: str = "none"

    def fields(self) -> dict[str, object]:
        """As cells name it."""
        return asdict(self)


def arms_of(table: str) -> Iterator[Arm]:
    """Every arm that a table shows; tables share some."""
    for data, tokens, llm in product(DATA, TOKENS, LLM):
        where = {"data": data, "tokens": tokens, "llm": llm}
        if table == "fusion":
            yield from (Arm(**where, fusion=fusion) for fusion in FUSIONS)
        elif table == "compressors":
            for compressor, fusion in product(COMPRESSORS, ("none", "combined")):
                yield Arm(**where, compressor=compressor, fusion=fusion)
        elif table == "reconstruction" and data == "boards":
            yield from (Arm(**where, aid=aid) for aid in AIDS)
        elif table == "orders" and data == "boards" and tokens in (4, 1):
            yield from (Arm(**where, fusion="combined", order=order, layers=layers) for order, layers in ORDERS)
