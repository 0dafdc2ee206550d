"""ECM whole: AGQ for each part of a model, and weight scaling for the vision encoder (sections 3.2 and 3.3)."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from statistics import fmean

import torch
from torch import Tensor, nn

from quantpack.affine import QuantizedTensor, dequantize
from quantpack.calibration.samples import Sample, read_samples
from quantpack.calibration.sites import Site, SiteResult
from quantpack.calibration.walk import walk
from quantpack.errors import SearchError
from quantpack.methods.ecm import Ecm, Rounding
from quantpack.methods.nearest import Nearest
from quantpack.progress import OnProgress
from quantpack.quantizing import Quantization, quantize, round_to_nearest, schemes_of, visit_with
from quantpack.recipe import PartRecipe, Recipe
from quantpack.restoring import restored
from quantpack.scheme import Scheme
from quantpack.search.agq import Evaluate, search_agq
from quantpack.search.candidates import AgqSpace, output_error, quantize_one
from quantpack.search.ecm_result import EcmResult, PartResult, Scaling
from quantpack.search.sizing import CodeSize, size_of
from quantpack.selection import PARTS, Part

# Accuracy of a model, more is better; leaves the model as it is.
Accuracy = Callable[[nn.Module], float]
ALPHAS = tuple(step / 10 for step in range(11))


@dataclass(frozen=True, kw_only=True, slots=True)
class PartSearch:
    """What may be done to one part.

    Attributes:
        space: The layouts of AGQ.
        max_drop: Accuracy that the part may cost; the floor ACC is what the model had before, less this.
        alphas: Exponents of the weight scaling to try; (0,) leaves it out.
        rounding: "nearest" or "gptq", for the codes that are kept; the search rounds to nearest.
    """

    space: AgqSpace = field(default_factory=AgqSpace)
    max_drop: float = 0.01
    alphas: tuple[float, ...] = (0.0,)
    rounding: Rounding = "nearest"


# The paper's choices: no zero points and scaling for the vision encoder only. The axis as measured (README): at equal
# error columns compress better than rows as they are; scaled columns differ more along a row, and rows win.
VISION = PartSearch(space=AgqSpace(symmetric=True, axis="out"), alphas=ALPHAS)
LANGUAGE = PartSearch(space=AgqSpace(axis="in"))


def search_ecm(
    model: nn.Module,
    calibration: Iterable[Sample],
    accuracy: Accuracy | None = None,
    parts: Mapping[Part, PartSearch | None] | None = None,
    on_progress: OnProgress | None = None,
) -> EcmResult:
    """Quantizes a model in place as coarsely as its accuracy lets it be.

    What joins the two, and any part not named, is rounded to nearest in groups of 128 first. Then the vision encoder is
    searched, then the language model on what the quantized encoder gives it.

    Args:
        model: Changed in place, as by `quantize`.
        calibration: Keyword arguments of its forward, one dict for each sample or batch.
        accuracy: The caller's, for example of a task. None: one less the mean relative output error of
            the part's matrices on the calibration tokens.
        parts: By default `VISION` and `LANGUAGE`; None leaves a part as it is.
        on_progress: Called after each trial with the matrices settled, all of them, and the part with what was tried.

    Raises:
        SearchError: A floor that not even fine groups hold, or a part without a matrix.
        CalibrationError: A sample does not fit; names it.
    """
    samples = read_samples(calibration)
    given: Mapping[Part, PartSearch | None] = {"vision": VISION, "language": LANGUAGE} if parts is None else parts
    wanted = {part: search for part, search in given.items() if search is not None}
    untouched = given.keys() - wanted.keys()
    full = accuracy(model) if accuracy is not None else 1.0
    counts = {part: len(schemes_of(model, _only(part, PartRecipe()))) for part in PARTS if part in wanted}
    searched = [part for part, count in counts.items() if count]
    if not searched:
        raise SearchError(f"ECM: expected linear layers in {', '.join(wanted)}, found none")
    tensors: dict[str, QuantizedTensor] = {}
    rest = Recipe(parts=dict.fromkeys([*searched, *untouched]))
    if schemes_of(model, rest):
        tensors |= quantize(model, rest, samples).tensors
    recipes: dict[Part, PartRecipe | None] = dict.fromkeys(untouched)
    schemes: dict[str, Scheme] = {}
    results: dict[Part, PartResult] = {}
    for part in searched:
        before = accuracy(model) if accuracy is not None else 1.0
        report = _part_progress(on_progress, part, counts)
        results[part], made = _search_part(model, part, wanted[part], samples, accuracy, before, report)
        tensors |= made.tensors
        recipes[part] = made.recipe.parts[part]
        schemes |= made.recipe.tensors
    quantization = Quantization(tensors=tensors, recipe=Recipe(parts=recipes, tensors=schemes))
    after = min(result.chosen.accuracy for result in results.values()) if accuracy is None else accuracy(model)
    return EcmResult(quantization=quantization, full_accuracy=full, accuracy=after, parts=results)


def _part_progress(on_progress: OnProgress | None, part: Part, counts: Mapping[Part, int]) -> OnProgress:
    """Counts the matrices of a part after those of the parts before it."""
    before = sum(count for each, count in counts.items() if PARTS.index(each) < PARTS.index(part))

    def report(done: int, _total: int, note: str) -> None:
        if on_progress is not None:
            on_progress(before + done, sum(counts.values()), f"{part}: {note}")

    return report


def _search_part(
    model: nn.Module,
    part: Part,
    search: PartSearch,
    samples: list[Sample],
    accuracy: Accuracy | None,
    before: float,
    on_progress: OnProgress,
) -> tuple[PartResult, Quantization]:
    """Leaves the part quantized as it was chosen."""
    start = search.space.schemes()[0]
    with restored(model):
        sites = _sites_of(model, _only(part, PartRecipe(scheme=start)), samples)
    evaluate = _evaluation(model, sites, accuracy)
    with restored(model):
        agq = search_agq(sites, evaluate, before - search.max_drop, search.space, on_progress)

    def recipe(alpha: float) -> Recipe:
        method = Ecm(alpha=alpha, rounding=search.rounding)
        return replace(_only(part, PartRecipe(scheme=start, method=method)), tensors=agq.schemes)

    def quantized(alpha: float) -> Quantization:
        # Another walk would rank channels by other activations: the codes would not be those that held the floor.
        if Ecm(alpha=alpha, rounding=search.rounding) == Ecm():
            return _as_searched(model, sites, recipe(alpha))
        return quantize(model, recipe(alpha), samples)

    scalings = []
    for alpha in search.alphas:
        if accuracy is None:
            size, found = _on_sites(sites, recipe(alpha))
        else:
            with restored(model):
                size = _total(quantized(alpha).tensors.values())
                found = accuracy(model)
        on_progress(len(agq.schemes), len(agq.schemes), f"alpha {alpha:g}: CR {size.cr_codes:.3f} at {found:.4f}")
        scalings.append(
            Scaling(
                alpha=alpha,
                cr_codes=size.cr_codes,
                bits_per_weight=size.bits_per_weight,
                accuracy=found,
                accepted=found >= agq.floor,
            )
        )
    held = [scaling for scaling in scalings if scaling.accepted]
    chosen = max(held, key=lambda each: each.cr_codes) if held else max(scalings, key=lambda each: each.accuracy)
    result = PartResult(agq=agq, scalings=tuple(scalings), chosen=chosen)
    return result, quantized(chosen.alpha)


def _as_searched(model: nn.Module, sites: list[Site], recipe: Recipe) -> Quantization:
    """Puts the codes of the last state that held into the model."""
    params = dict(model.named_parameters())
    tensors = {name: quantize_one(site, name, recipe.tensors[name]) for site in sites for name in site.weights}
    with torch.no_grad():
        for name, tensor in tensors.items():
            params[name].copy_(dequantize(tensor))
    round_to_nearest(model, schemes_of(model, recipe), tensors)
    return Quantization(tensors=tensors, recipe=recipe)


def _total(tensors: Iterable[QuantizedTensor]) -> CodeSize:
    return sum((size_of(tensor) for tensor in tensors), start=CodeSize())


def _only(part: Part, recipe: PartRecipe) -> Recipe:
    return Recipe(parts={each: recipe if each == part else None for each in PARTS})


def _sites_of(model: nn.Module, recipe: Recipe, samples: list[Sample]) -> list[Site]:
    """Sites of a part, with its own weights, on what the part rounded to nearest in groups gives."""
    sites: list[Site] = []

    def look(site: Site) -> SiteResult:
        kept = {name: weight.clone() for name, weight in site.weights.items()}
        sites.append(replace(site, weights=kept))
        return Nearest().quantize_site(site)

    walk(model, samples, look, schemes=schemes_of(model, recipe))
    return sites


def _evaluation(model: nn.Module, sites: list[Site], accuracy: Accuracy | None) -> Evaluate:
    params = dict(model.named_parameters())
    where = {name: site for site in sites for name in site.weights}

    def by_task(weights: Mapping[str, Tensor]) -> float:
        assert accuracy is not None
        with torch.no_grad():
            for name, weight in weights.items():
                params[name].copy_(weight)
        return accuracy(model)

    def by_outputs(weights: Mapping[str, Tensor]) -> float:
        return 1 - fmean(_error(where[name], name, weight) for name, weight in weights.items())

    return by_outputs if accuracy is None else by_task


def _on_sites(sites: list[Site], recipe: Recipe) -> tuple[CodeSize, float]:
    """What a recipe takes, and one less its mean output error, on the activations of the sites."""
    tensors: list[QuantizedTensor] = []
    errors: list[float] = []
    for site in sites:
        schemes = {name: scheme for name in site.weights if (scheme := recipe.scheme_of(name)) is not None}
        result = visit_with(recipe)(replace(site, schemes=schemes))
        for name, tensor in result.quantized.items():
            weight = dequantize(tensor, torch.float32)
            tensors.append(tensor)
            errors.append(_error(site, name, weight if result.factor is None else weight / result.factor))
    return _total(tensors), 1 - fmean(errors)


def _error(site: Site, name: str, weight: Tensor) -> float:
    return output_error(site.weights[name].float(), weight.float(), site.activations.samples)
