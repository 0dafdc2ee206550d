"""What ECM's search found, and the way to it."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from quantpack.quantizing import Quantization
from quantpack.search.agq import AgqResult
from quantpack.search.drawing import Point, trade_off_svg
from quantpack.selection import Part


@dataclass(frozen=True, kw_only=True, slots=True)
class Scaling:
    """One exponent of the scaling search.

    Attributes:
        alpha: s = max|X|^alpha.
        cr_codes: Of the part.
        bits_per_weight: Of the part, with scales and zeros.
        accuracy: Of the model with the part quantized as it would be kept.
        accepted: True where the floor held.
    """

    alpha: float
    cr_codes: float
    bits_per_weight: float
    accuracy: float
    accepted: bool


@dataclass(frozen=True, kw_only=True, slots=True)
class PartResult:
    """What was found for one part.

    Attributes:
        agq: The AGQ search.
        scalings: Every exponent tried, in order.
        chosen: The one that was kept: the largest CR that holds the floor, else the most accurate.
    """

    agq: AgqResult
    scalings: tuple[Scaling, ...]
    chosen: Scaling


@dataclass(frozen=True, kw_only=True, slots=True)
class EcmResult:
    """A quantized model and the way to it.

    Attributes:
        quantization: Codes and recipe, as `quantize` gives them.
        full_accuracy: Before.
        accuracy: After.
        parts: By part, in the order they were searched.
    """

    quantization: Quantization
    full_accuracy: float
    accuracy: float
    parts: Mapping[Part, PartResult]

    def as_fields(self) -> dict[str, Any]:
        """The whole search as JSON, for a pack's quantization.json; the schemes are in the pack's index too."""
        return {
            "full_accuracy": self.full_accuracy,
            "accuracy": self.accuracy,
            "parts": {part: _part_fields(result) for part, result in self.parts.items()},
        }

    def svg(self) -> str:
        """The paths that were taken (Figure 6); raises MissingExtraError without matplotlib."""
        points = [
            Point(
                name=f"alpha {scaling.alpha}",
                kind=f"scaling, {part}",
                cr_codes=scaling.cr_codes,
                bits_per_weight=scaling.bits_per_weight,
                accuracy=scaling.accuracy,
            )
            for part, result in self.parts.items()
            for scaling in result.scalings
            if len(result.scalings) > 1
        ]
        return trade_off_svg(
            points, {part: result.agq.trials for part, result in self.parts.items()}, self.full_accuracy
        )


def _part_fields(result: PartResult) -> dict[str, Any]:
    """Matrices and schemes are written once and numbered: there are many trials."""
    matrices = list(result.agq.schemes)
    schemes = list(dict.fromkeys(result.agq.schemes.values()))
    return {
        "floor": result.agq.floor,
        "matrices": matrices,
        "trials": [
            {**asdict(trial), "changed": [matrices.index(name) for name in trial.changed]}
            for trial in result.agq.trials
        ],
        "scalings": [asdict(scaling) for scaling in result.scalings],
        "alpha": result.chosen.alpha,
        "schemes": [scheme.as_fields() for scheme in schemes],
        "chosen": [schemes.index(result.agq.schemes[name]) for name in matrices],
    }
