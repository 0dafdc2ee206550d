"""ECM's Tables 1, 2 and 4, and Figures 4 and 6, on trained models."""

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

from quantpack import AgqSpace, PartRecipe, PartSearch, Quantization, Recipe, Scheme, SearchError, quantize, search_ecm
from quantpack.calibration.sites import Method
from quantpack.inspecting import inspect
from quantpack.methods.ecm import Ecm
from quantpack.methods.registry import METHODS
from quantpack.packing import pack_model
from quantpack.quantizing import schemes_of
from quantpack.scheme import Axis
from quantpack.search.ecm import ALPHAS, PartResult
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
# Part and kind: the language model by AGQ alone, the vision encoder without zero points and with scaling as well.
SEARCHES: tuple[tuple[Part, str], ...] = (("vision", "agq"), ("vision", "scaled"), ("language", "agq"))


def measure_tables(
    cells: Cells, subjects: Sequence[Subject], table_bits: Sequence[int], search_bits: Sequence[int]
) -> None:
    """Table 1 and Figure 4, then Tables 4 and 2 for those bits that are searched."""
    for subject in subjects:
        cells.measure("full", partial(_full, subject), model=subject.name)
    for bits, subject, part in product(table_bits, subjects, SEARCHED):
        _table_1(cells, subject, bits, part)
    for bits, subject in product(search_bits, subjects):
        for axis in AXES:
            for part, kind in SEARCHES:
                # Figure 6 is of the first model.
                watched = subject is subjects[0] and part == "language"
                make = partial(_search, subject, bits, part, axis, scaled=kind == "scaled", watched=watched)
                cells.measure("search", make, model=subject.name, bits=bits, part=part, axis=axis, kind=kind)
            _ecm_row(cells, subject, bits, axis)
        for method in ("awq", "mbq"):
            make = partial(_rival_whole, subject, bits, method)
            cells.measure("whole", make, model=subject.name, bits=bits, method=method)


def _ecm_row(cells: Cells, subject: Subject, bits: int, axis: Axis) -> None:
    """Table 2's ECM, which begins as the search of the vision encoder alone does."""
    found = [value for _, value in cells.of("search", model=subject.name, bits=bits, axis=axis, kind="scaled")]
    make = partial(_ecm_whole, subject, bits, axis, found[0])
    cells.measure("whole", make, model=subject.name, bits=bits, method=f"ecm-{axis}")


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


def _part_search(subject: Subject, bits: int, part: Part, axis: Axis, *, scaled: bool) -> PartSearch:
    """The floor is DROP below the worse of the model as it is and with the part in groups, where the search starts."""
    model = subject.fresh()
    space = AgqSpace(bits=bits, axis=axis, symmetric=scaled, group_size=GROUP)
    quantize(model, _alone(part, PartRecipe(scheme=space.schemes()[0])), subject.calibration)
    lost = max(0.0, subject.search_accuracy(subject.model) - subject.search_accuracy(model))
    return PartSearch(space=space, max_drop=lost + DROP, alphas=ALPHAS if scaled else (0.0,))


def _search(subject: Subject, bits: int, part: Part, axis: Axis, *, scaled: bool, watched: bool) -> dict[str, Any]:
    """One part searched, the others left alone; the codes found once more with error feedback.

    `watched` measures each trial on the test questions as well.
    """
    search = _part_search(subject, bits, part, axis, scaled=scaled)
    model = subject.fresh()
    others = dict.fromkeys(PARTS) | {part: search}
    tested: list[float] = []

    def accuracy(changed: nn.Module) -> float:
        if watched:
            tested.append(subject.row(changed, {})["accuracy"])
        return subject.search_accuracy(changed)

    try:
        found = search_ecm(model, subject.calibration, accuracy, others)
    except SearchError as error:
        return {"refused": str(error)}
    result = found.parts[part]
    rows = {"nearest": subject.row(model, found.quantization.tensors)}
    alphas = {"": result.chosen.alpha, "symmetric-": 0.0} if scaled else {"": 0.0}
    for prefix, alpha in alphas.items():
        for rounding in ("nearest", "gptq"):
            if prefix or rounding == "gptq":
                recipe = _with_method(found.quantization.recipe, part, Ecm(alpha=alpha, rounding=rounding))
                rows[f"{prefix}{rounding}"] = _fixed(subject, recipe)
    # The first two calls are for the model as it is.
    return {"rows": rows, "chosen": _chosen(result, search.space), **_way(result, tested[2:])}


def _chosen(result: PartResult, space: AgqSpace) -> list[int]:
    """The number of each matrix's layout among those of the space, in order of the matrices' names."""
    layouts = space.schemes()
    return [layouts.index(result.agq.schemes[name]) for name in sorted(result.agq.schemes)]


def _with_method(recipe: Recipe, part: Part, method: Method) -> Recipe:
    chosen = recipe.parts[part]
    assert chosen is not None
    return replace(recipe, parts={**recipe.parts, part: replace(chosen, method=method)})


def _way(result: PartResult, tested: Sequence[float]) -> dict[str, Any]:
    """Trials as [CR, accuracy, accepted] and, where they were watched, the tested accuracies; exponents alike."""
    trials = result.agq.trials
    way = {
        "floor": result.agq.floor,
        "path": [[trial.cr_codes, trial.accuracy, int(trial.accepted)] for trial in trials],
        "alpha": result.chosen.alpha,
        "scalings": [[each.alpha, each.cr_codes, each.accuracy, int(each.accepted)] for each in result.scalings],
    }
    return {**way, "tested": list(tested[: len(trials)])} if tested else way


def _rival_whole(subject: Subject, bits: int, method: str) -> dict[str, Any]:
    """AWQ on the language model alone, MBQ on both parts, as in Table 2; what joins them stays."""
    recipe = PartRecipe(scheme=Scheme(bits=bits, group_size=GROUP), method=METHODS[method]())
    parts: dict[Part, PartRecipe | None] = {"vision": None, "language": recipe, "other": None}
    if method == "mbq":
        parts["vision"] = recipe
    model = subject.fresh()
    return _measured_whole(subject, model, quantize(model, Recipe(parts=parts), subject.calibration))


def _ecm_whole(subject: Subject, bits: int, axis: Axis, found: dict[str, Any]) -> dict[str, Any]:
    """The vision encoder as its search left it, then the language model on what that gives it, as `search_ecm` goes."""
    if "rows" not in found:
        return found
    model = subject.fresh()
    vision = _found_recipe(subject, bits, axis, found)
    tensors = dict(quantize(model, vision, subject.calibration).tensors)
    search = _part_search(subject, bits, "language", axis, scaled=False)
    parts: dict[Part, PartSearch | None] = {"vision": None, "language": search, "other": None}
    try:
        language = search_ecm(model, subject.calibration, subject.search_accuracy, parts)
    except SearchError as error:
        return {"refused": str(error)}
    tensors |= language.quantization.tensors
    quantization = replace(language.quantization, tensors=tensors)
    return {**_measured_whole(subject, model, quantization), "search_accuracy": language.accuracy}


def _found_recipe(subject: Subject, bits: int, axis: Axis, found: dict[str, Any]) -> Recipe:
    """What a cell says that the scaled search of the vision encoder chose."""
    layouts = AgqSpace(bits=bits, axis=axis, symmetric=True, group_size=GROUP).schemes()
    recipe = _alone("vision", PartRecipe(scheme=layouts[0], method=Ecm(alpha=found["alpha"])))
    names = sorted(schemes_of(subject.model, recipe))
    return replace(recipe, tensors={name: layouts[number] for name, number in zip(names, found["chosen"], strict=True)})


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
