"""Many ways to quantize one model, measured alike: compression against accuracy (ECM Figures 4 and 6)."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from torch import nn

from quantpack.accuracy import answer_accuracy
from quantpack.affine import QuantizedTensor
from quantpack.calibration.dataset import Question
from quantpack.calibration.samples import Sample, read_samples
from quantpack.errors import SearchError
from quantpack.methods.awq import Awq
from quantpack.methods.gptq import Gptq
from quantpack.methods.mbq import Mbq
from quantpack.methods.smoothquant import SmoothQuant
from quantpack.progress import OnProgress
from quantpack.quantizing import quantize
from quantpack.recipe import PartRecipe, Recipe
from quantpack.restoring import restored
from quantpack.scheme import Scheme
from quantpack.search.agq import Trial
from quantpack.search.drawing import Point, trade_off_svg
from quantpack.search.ecm import PartSearch, search_ecm
from quantpack.search.sizing import CodeSize, size_of
from quantpack.selection import PARTS, Part, part_of


@dataclass(frozen=True, kw_only=True, slots=True)
class Setting:
    """One point of a sweep.

    Attributes:
        name: As shown.
        kind: Settings of one kind are drawn alike.
        recipe: What is done.
    """

    name: str
    kind: str
    recipe: Recipe


@dataclass(frozen=True, kw_only=True, slots=True)
class SweepPoint:
    """A setting, measured.

    Attributes:
        name: Of the setting.
        kind: Of the setting.
        cr_codes: The paper's compression ratio over all quantized weights.
        bits_per_weight: Compressed codes, scales, zeros and blocks over all quantized weights.
        accuracy: On the questions.
        cr_by_part: cr_codes of each part that has codes.
    """

    name: str
    kind: str
    cr_codes: float
    bits_per_weight: float
    accuracy: float
    cr_by_part: Mapping[Part, float]


@dataclass(frozen=True, kw_only=True, slots=True)
class Sweep:
    """What a sweep found.

    Attributes:
        full_accuracy: Before quantization.
        points: In the order of the settings; a search's last.
        paths: Trials of the search of each part; empty without one.
    """

    full_accuracy: float
    points: tuple[SweepPoint, ...]
    paths: Mapping[Part, Sequence[Trial]]

    def as_fields(self) -> dict[str, Any]:
        """As JSON."""
        return {
            "full_accuracy": self.full_accuracy,
            "points": [{**asdict(point), "cr_by_part": dict(point.cr_by_part)} for point in self.points],
            "paths": {part: [asdict(trial) for trial in trials] for part, trials in self.paths.items()},
        }

    def svg(self) -> str:
        """The trade-off drawn; raises MissingExtraError without matplotlib."""
        points = [
            Point(name=p.name, kind=p.kind, cr_codes=p.cr_codes, bits_per_weight=p.bits_per_weight, accuracy=p.accuracy)
            for p in self.points
        ]
        paths = {f"AGQ search, {part}": trials for part, trials in self.paths.items()}
        return trade_off_svg(points, paths, self.full_accuracy)


def standard_settings(*, bits: int = 4, symmetric: bool = False) -> tuple[Setting, ...]:
    """The fixed granularities of Figure 4, and the rivals of Table 1 as the paper ran them."""
    group = Scheme(bits=bits, symmetric=symmetric)
    tensor = replace(group, granularity="tensor")
    fixed = {
        **{f"group {size}": replace(group, group_size=size) for size in (32, 64, 128)},
        "channel": replace(group, granularity="channel"),
        **{f"{rows} rows": replace(group, granularity="rows", num_rows=rows) for rows in (2, 4, 8, 16)},
        "tensor": tensor,
    }
    settings = [
        Setting(name=name, kind=scheme.granularity, recipe=Recipe(default=PartRecipe(scheme=scheme)))
        for name, scheme in fixed.items()
    ]
    rivals = (
        ("GPTQ", group, Gptq()),
        ("AWQ", group, Awq()),
        ("MBQ", group, Mbq()),
        ("SmoothQuant", tensor, SmoothQuant()),
    )
    for name, scheme, method in rivals:
        recipe = Recipe(default=PartRecipe(scheme=scheme, method=method))
        settings.append(Setting(name=name, kind=name, recipe=recipe))
    return tuple(settings)


def sweep(
    model: nn.Module,
    settings: Sequence[Setting],
    calibration: Iterable[Sample],
    questions: Sequence[Question],
    *,
    search: Mapping[Part, PartSearch] | None = None,
    search_questions: Sequence[Question] | None = None,
    on_progress: OnProgress | None = None,
) -> Sweep:
    """Quantizes a model in each way and measures it; the model ends as it began.

    Args:
        model: A transformers model in memory.
        settings: What to try.
        calibration: Keyword arguments of its forward, for the methods.
        questions: What accuracy is measured on, as they are or in batches.
        search: Also runs ECM's search.
        search_questions: What its floor is held on: others than `questions`, or the result flatters itself. None:
            `questions`.
        on_progress: Called after each setting, and after each trial of the search.

    Raises:
        SearchError: There is nothing to try, or no question.
        CalibrationError: A sample does not fit; names it.
    """
    if not questions or not (settings or search):
        raise SearchError(f"sweep: expected settings and questions, got {len(settings)} and {len(questions)}")
    samples = read_samples(calibration)
    full = answer_accuracy(model, questions)
    points = []
    for number, setting in enumerate(settings, 1):
        with restored(model):
            tensors = quantize(model, setting.recipe, samples).tensors
            points.append(_point(setting.name, setting.kind, tensors, answer_accuracy(model, questions)))
        if on_progress is not None:
            on_progress(number, len(settings), setting.name)
    paths: dict[Part, Sequence[Trial]] = {}
    if search is not None:
        with restored(model):
            asked = questions if search_questions is None else search_questions
            found = search_ecm(model, samples, lambda each: answer_accuracy(each, asked), search, on_progress)
            points.append(_point("ECM", "ECM", found.quantization.tensors, answer_accuracy(model, questions)))
        paths = {part: result.agq.trials for part, result in found.parts.items()}
    return Sweep(full_accuracy=full, points=tuple(points), paths=paths)


def _point(name: str, kind: str, tensors: Mapping[str, QuantizedTensor], accuracy: float) -> SweepPoint:
    sizes = dict.fromkeys(PARTS, CodeSize())
    for weight, tensor in tensors.items():
        sizes[part_of(weight)] += size_of(tensor)
    total = sum(sizes.values(), start=CodeSize())
    return SweepPoint(
        name=name,
        kind=kind,
        cr_codes=total.cr_codes,
        bits_per_weight=total.bits_per_weight,
        accuracy=accuracy,
        cr_by_part={part: size.cr_codes for part, size in sizes.items() if size.num_weights},
    )
