"""ECM's search by the few figures a caller chooses; the rest is as in the paper."""

from dataclasses import dataclass, replace

from quantpack.errors import SchemeError
from quantpack.methods.ecm import Ecm, Rounding
from quantpack.scheme import Axis, Scheme
from quantpack.search.candidates import AgqSpace
from quantpack.search.ecm import LANGUAGE, VISION, PartSearch
from quantpack.selection import Part


@dataclass(frozen=True, kw_only=True, slots=True)
class EcmSearch:
    """What is searched in both parts of a model.

    Attributes:
        max_drop: Accuracy that each part may cost, over 0 and at most 1.
        bits: Of one code.
        group_size: Of the fine block, and where the search starts.
        axis: What a channel is; None: what `VISION` and `LANGUAGE` say.
        rounding: For the codes that are kept.
    """

    max_drop: float = 0.01
    bits: int = 4
    group_size: int = 128
    axis: Axis | None = None
    rounding: Rounding = "nearest"

    def __post_init__(self) -> None:
        if not 0 < self.max_drop <= 1:
            raise SchemeError(f"search: expected a drop over 0 and at most 1, got {self.max_drop!r}")
        # Each checks what is its own.
        Scheme(bits=self.bits, group_size=self.group_size, axis=self.axis or "out")
        Ecm(rounding=self.rounding)

    def parts(self) -> dict[Part, PartSearch]:
        """As `search_ecm` takes it: the vision encoder without zero points and scaled, then the language model."""
        return {"vision": self._part(VISION), "language": self._part(LANGUAGE)}

    def _part(self, like: PartSearch) -> PartSearch:
        axis = self.axis or like.space.axis
        space = AgqSpace(bits=self.bits, group_size=self.group_size, axis=axis, symmetric=like.space.symmetric)
        return replace(like, space=space, max_drop=self.max_drop, rounding=self.rounding)
