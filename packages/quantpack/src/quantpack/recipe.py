"""How a whole model is quantized: a scheme and a method for each of its parts."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, get_args

from quantpack.calibration.sites import Method
from quantpack.errors import SchemeError
from quantpack.methods.ecm import Ecm
from quantpack.methods.nearest import Nearest
from quantpack.methods.registry import METHODS
from quantpack.scheme import Scheme
from quantpack.selection import Part, part_of

Embeddings = Literal["keep", "int4"]


@dataclass(frozen=True, kw_only=True, slots=True)
class PartRecipe:
    """A scheme, and the method that finds the codes."""

    scheme: Scheme = field(default_factory=Scheme)
    method: Method = field(default_factory=Nearest)

    @property
    def needs_calibration(self) -> bool:
        """True for every method that looks at activations; AGQ ranks channels by their weights without any."""
        return self.method not in (Nearest(), Ecm())


@dataclass(frozen=True, kw_only=True, slots=True)
class Recipe:
    """What becomes of each weight.

    Attributes:
        default: For every part that is not named.
        parts: "vision", "language", "other" (what joins the two); None leaves a part as it is.
        tensors: Schemes of single weights by name, as a search chose them.
        embeddings: "keep", or "int4": token embeddings and the output head are quantized as well, to nearest.
    """

    default: PartRecipe = field(default_factory=PartRecipe)
    parts: Mapping[Part, PartRecipe | None] = field(default_factory=dict)
    tensors: Mapping[str, Scheme] = field(default_factory=dict)
    embeddings: Embeddings = "keep"

    def __post_init__(self) -> None:
        if self.embeddings not in get_args(Embeddings):
            raise SchemeError(f"embeddings: expected one of {', '.join(get_args(Embeddings))}, got {self.embeddings!r}")
        unknown = self.parts.keys() - set(get_args(Part))
        if unknown:
            raise SchemeError(f"parts: expected {', '.join(get_args(Part))}, got {min(unknown)!r}")

    def part(self, name: str) -> PartRecipe | None:
        """The recipe of the part that a weight belongs to; None: it stays as it is."""
        return self.parts.get(part_of(name), self.default)

    def scheme_of(self, name: str) -> Scheme | None:
        """The scheme of one weight; None: it stays as it is."""
        part = self.part(name)
        return None if part is None else self.tensors.get(name, part.scheme)

    @property
    def used_parts(self) -> tuple[PartRecipe, ...]:
        """What any part of a model may meet."""
        used = [part for part in self.parts.values() if part is not None]
        return (self.default, *used) if len(self.parts) < len(get_args(Part)) else tuple(used)

    def as_fields(self) -> dict[str, Any]:
        """As JSON, for a pack's quantization.json; schemes of single weights are in the pack's index."""
        return {
            "default": _part_fields(self.default),
            "parts": {part: recipe and _part_fields(recipe) for part, recipe in sorted(self.parts.items())},
            "embeddings": self.embeddings,
        }


def as_recipe(scheme: "Scheme | Recipe") -> Recipe:
    """A scheme alone means round to nearest everywhere."""
    return scheme if isinstance(scheme, Recipe) else Recipe(default=PartRecipe(scheme=scheme))


def method_name(method: Method) -> str:
    """The method's name in `METHODS`.

    Raises:
        SchemeError: It is none of them.
    """
    for name, make in METHODS.items():
        if type(make()) is type(method):
            return name
    raise SchemeError(f"method: expected one of {', '.join(METHODS)}, got {type(method).__name__}")


def _part_fields(recipe: PartRecipe) -> dict[str, Any]:
    settings = asdict(recipe.method)  # type: ignore[call-overload]
    return {"scheme": recipe.scheme.as_fields(), "method": method_name(recipe.method), **settings}
