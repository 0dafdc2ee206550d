"""ECM's Tables 1, 2 and 4, and Figures 4 and 6, on trained models."""

import copy
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

from ecm.cells import Cells
from ecm.subjects import Subject
from torch import nn

from quantpack import AgqSpace, PartRecipe, PartSearch, Quantization, Recipe, Scheme, quantize, search_ecm
from quantpack.calibration.sites import Method
from quantpack.inspecting import inspect
from quantpack.methods.ecm import Ecm, Rounding
from quantpack.methods.registry import METHODS
from quantpack.packing import pack_model
from quantpack.quantizing import schemes_of
from quantpack.scheme import Axis
from quantpack.search.ecm import ALPHAS
from quantpack.search.ecm_result import PartResult
from quantpack.search.sizing import CodeSize, size_of
from quantpack.selection import PARTS, Part, part_of
from quantpack.source import WEIGHTS

SEARCHED: tuple[Part, ...] = ("vision", "language")
# The matrices are 64 to 160 wide: 128, as in the paper, would be whole rows.
GROUP = 32
# Accuracy that each part may cost beyond what groups everywhere cost.
DROP = 0.01
FIXED: dict[str, Scheme] = {
    **{f"group{size}": Scheme(group_size=size) for size in (8, 16, 32)},
    "channel": Scheme(granularity="channel"),
    **{f"{rows}rows": Scheme(granularity="rows", num_rows=rows) for rows in (2, 4, 8, 16)},
    "tensor": Scheme(granularity="tensor"),
}
# As the paper ran them: SmoothQuant per tensor, the others in groups.
RIVALS = {"awq": "group32", "smoothquant": "tensor", "mbq": "group32", "gptq": "group32"}
AXES: tuple[Axis, ...] = ("out", "in")
ROUNDINGS: tuple[Rounding, ...] = ("nearest", "gptq")


def measure_tables(
    cells: Cells, subjects: Sequence[Subject], table_bits: Sequence[int], search_bits: Sequence[int]
) -> None:
    """Table 1 and Figure 4, then Tables 4 and 2 for those bits that are searched."""
    for subject in subjects:
        cells.measure("full", partial(_full, subject), model=subject.name)
    for bits, subject, part in product(table_bits, subjects, SEARCHED):
        _table_1(cells, subject, bits, part)
    for bits, subject in product(search_bits, subjects):
        where = {"model": subject.name, "bits": bits}
        for axis, part in product(AXES, SEARCHED):
            # Figure 6 is of the first model.
            watched = subject is subjects[0] and part == "language"
            make = partial(_agq, subject, bits, part, axis, watched=watched)
            cells.measure("agq", make, **where, part=part, axis=axis)
        for axis in AXES:
            found = cells.measure("ecm", partial(_ecm, subject, bits, axis), **where, axis=axis)
            cells.measure("ecm-gptq", partial(_with_feedback, subject, bits, axis, found), **where, axis=axis)
        for method in ("awq", "mbq"):
            cells.measure("rival", partial(_rival, subject, bits, method), **where, method=method)


def _full(subject: Subject) -> dict[str, Any]:
    counts = dict.fromkeys(PARTS, 0)
    for name, parameter in subject.model.named_parameters():
        counts[part_of(name)] += parameter.numel()
    return {
        "accuracy": subject.row(subject.model, {})["accuracy"],
        "search_accuracy": subject.search_accuracy(subject.model),
        "counts": counts,
        "bytes": (subject.directory / WEIGHTS).stat().st_size,
    }


def _table_1(cells: Cells, subject: Subject, bits: int, part: Part) -> None:
    where = {"model": subject.name, "bits": bits, "part": part}
    for name, scheme in FIXED.items():
        make = partial(_fixed, subject, _alone(part, PartRecipe(scheme=replace(scheme, bits=bits))))
        cells.measure("fixed", make, **where, granularity=name)
    for name, granularity in RIVALS.items():
        recipe = PartRecipe(scheme=replace(FIXED[granularity], bits=bits), method=METHODS[name]())
        cells.measure("method", partial(_fixed, subject, _alone(part, recipe)), **where, method=name)


def _fixed(subject: Subject, recipe: Recipe) -> dict[str, Any]:
    model = subject.fresh()
    return subject.row(model, quantize(model, recipe, subject.calibration).tensors)


def _alone(part: Part, recipe: PartRecipe) -> Recipe:
    return Recipe(parts={each: recipe if each == part else None for each in PARTS})


def _part_search(
    subject: Subject, model: nn.Module, bits: int, part: Part, axis: Axis, *, scaled: bool = False
) -> PartSearch:
    """The floor is DROP below the worse of the model and the model with the part in groups: the start of the search."""
    start = copy.deepcopy(model)
    space = AgqSpace(bits=bits, axis=axis, symmetric=scaled, group_size=GROUP)
    quantize(start, _alone(part, PartRecipe(scheme=space.schemes()[0])), subject.calibration)
    lost = max(0.0, subject.search_accuracy(model) - subject.search_accuracy(start))
    return PartSearch(space=space, max_drop=lost + DROP, alphas=ALPHAS if scaled else (0.0,))


def _agq(subject: Subject, bits: int, part: Part, axis: Axis, *, watched: bool) -> dict[str, Any]:
    """One part searched, the others left alone; the codes found once more with error feedback.

    `watched` measures each trial on the test questions as well.
    """
    model = subject.fresh()
    search = _part_search(subject, model, bits, part, axis)
    tested: list[float] = []

    def accuracy(changed: nn.Module) -> float:
        if watched:
            tested.append(subject.row(changed, {})["accuracy"])
        return subject.search_accuracy(changed)

    found = search_ecm(model, subject.calibration, accuracy, dict.fromkeys(PARTS) | {part: search})
    recipe = _with_method(found.quantization.recipe, part, Ecm(rounding="gptq"))
    rows = {"nearest": subject.row(model, found.quantization.tensors), "gptq": _fixed(subject, recipe)}
    # The first two calls are for the model as it is.
    return {"rows": rows, **_way(found.parts[part], search.space, tested[2:])}


def _ecm(subject: Subject, bits: int, axis: Axis) -> dict[str, Any]:
    """Vision encoder, then language model, as `search_ecm` goes; each floor counts from what is there by then."""
    model = subject.fresh()
    search = _part_search(subject, model, bits, "vision", axis, scaled=True)
    vision = search_ecm(model, subject.calibration, subject.search_accuracy, dict.fromkeys(PARTS) | {"vision": search})
    rows = {"nearest": subject.row(model, vision.quantization.tensors)}
    for label, alpha in (("", vision.parts["vision"].chosen.alpha), ("symmetric-", 0.0)):
        for rounding in ROUNDINGS:
            if label or rounding == "gptq":
                again = _with_method(vision.quantization.recipe, "vision", Ecm(alpha=alpha, rounding=rounding))
                rows[f"{label}{rounding}"] = _fixed(subject, again)
    way = _way(vision.parts["vision"], search.space, [])
    search = _part_search(subject, model, bits, "language", axis)
    found = search_ecm(model, subject.calibration, subject.search_accuracy, dict.fromkeys(PARTS) | {"language": search})
    both = replace(found.quantization, tensors={**vision.quantization.tensors, **found.quantization.tensors})
    return {
        "rows": rows,
        **way,
        "language": _way(found.parts["language"], search.space, []),
        "whole": {**_measured_whole(subject, model, both), "search_accuracy": found.accuracy},
    }


def _with_feedback(subject: Subject, bits: int, axis: Axis, found: dict[str, Any]) -> dict[str, Any]:
    """The layouts that were found for both parts, with error feedback in the place of nearest rounding."""
    parts: dict[Part, PartRecipe | None] = {"other": None}
    schemes: dict[str, Scheme] = {}
    for part, way in (("vision", found), ("language", found["language"])):
        layouts = AgqSpace(bits=bits, axis=axis, symmetric=part == "vision", group_size=GROUP).schemes()
        parts[part] = PartRecipe(scheme=layouts[0], method=Ecm(alpha=way["alpha"], rounding="gptq"))
        names = sorted(name for name in schemes_of(subject.model, Recipe()) if part_of(name) == part)
        schemes |= {name: layouts[number] for name, number in zip(names, way["chosen"], strict=True)}
    model = subject.fresh()
    quantization = quantize(model, Recipe(parts=parts, tensors=schemes), subject.calibration)
    return {"whole": _measured_whole(subject, model, quantization)}


def _with_method(recipe: Recipe, part: Part, method: Method) -> Recipe:
    chosen = recipe.parts[part]
    assert chosen is not None
    return replace(recipe, parts={**recipe.parts, part: replace(chosen, method=method)})


def _way(result: PartResult, space: AgqSpace, tested: Sequence[float]) -> dict[str, Any]:
    """How a search went, and for each matrix, by name, the number of its layout in the space.

    Exponents are [alpha, CR, accuracy, accepted]; trials, where they were watched, [CR, accuracy, tested, accepted].
    """
    layouts = space.schemes()
    trials = result.agq.trials
    way = {
        "floor": result.agq.floor,
        "trials": len(trials),
        "alpha": result.chosen.alpha,
        "scalings": [[each.alpha, each.cr_codes, each.accuracy, int(each.accepted)] for each in result.scalings],
        "chosen": [layouts.index(result.agq.schemes[name]) for name in sorted(result.agq.schemes)],
    }
    watched = zip(trials, tested[: len(trials)], strict=bool(tested))
    path = [[trial.cr_codes, trial.accuracy, seen, int(trial.accepted)] for trial, seen in watched]
    return {**way, "path": path} if path else way


def _rival(subject: Subject, bits: int, method: str) -> dict[str, Any]:
    """AWQ on the language model alone, MBQ on both parts, as in Table 2; what joins them stays."""
    recipe = PartRecipe(scheme=Scheme(bits=bits, group_size=GROUP), method=METHODS[method]())
    parts: dict[Part, PartRecipe | None] = {"vision": None, "language": recipe, "other": None}
    if method == "mbq":
        parts["vision"] = recipe
    model = subject.fresh()
    return _measured_whole(subject, model, quantize(model, Recipe(parts=parts), subject.calibration))


def _measured_whole(subject: Subject, model: nn.Module, quantization: Quantization) -> dict[str, Any]:
    """By part what the codes take, the accuracy, and the bytes of a real pack's weights."""
    sizes = dict.fromkeys(SEARCHED, CodeSize())
    for name, tensor in quantization.tensors.items():
        part = part_of(name)
        sizes[part] = sizes[part] + size_of(tensor)
    with tempfile.TemporaryDirectory() as folder:
        pack = Path(folder) / "pack"
        pack_model(model, quantization, pack, like=subject.directory)
        reports = {report.part: report.bytes_on_disk for report in inspect(pack)}
        weight_bytes = (pack / WEIGHTS).stat().st_size
    return {
        "accuracy": subject.row(model, {})["accuracy"],
        "cr": {part: size.cr_codes for part, size in sizes.items() if size.num_weights},
        "bits": {part: size.bits_per_weight for part, size in sizes.items() if size.num_weights},
        "on_disk": {part: reports[part] for part in SEARCHED},
        "weight_bytes": weight_bytes,
        "int4_language_bytes": _int4_language(subject),
    }


def _int4_language(subject: Subject) -> int:
    """What Table 2 compares with, in bytes: the language model in INT4 groups, not compressed, the rest in bfloat16."""
    model = subject.fresh()
    tensors = quantize(model, _alone("language", PartRecipe(scheme=Scheme(group_size=GROUP)))).tensors
    coded = sum((size_of(tensor) for tensor in tensors.values()), start=CodeSize())
    kept = sum(parameter.numel() for parameter in model.parameters()) - coded.num_weights
    return coded.code_bytes_packed + coded.side_bytes + 2 * kept
