"""Quantizes a model in memory."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from quantpack.affine import SCALE_DTYPES, QuantizedTensor, dequantize, quantize_tensor
from quantpack.calibration.gradients import visual_weights
from quantpack.calibration.samples import Sample, read_samples
from quantpack.calibration.sites import Method, Site, SiteResult
from quantpack.calibration.walk import walk
from quantpack.errors import CalibrationError, WeightError
from quantpack.progress import OnProgress
from quantpack.recipe import Recipe, as_recipe, method_name
from quantpack.scheme import Scheme
from quantpack.selection import is_embedding, is_linear_weight


@dataclass(frozen=True, kw_only=True, slots=True)
class Quantization:
    """What `quantize` made of a model; the model itself holds the weights that the codes stand for.

    Attributes:
        tensors: Codes by parameter name; weights tied together have one entry.
        recipe: How they were made.
    """

    tensors: Mapping[str, QuantizedTensor]
    recipe: Recipe


def quantize(
    model: nn.Module,
    scheme: Scheme | Recipe,
    calibration: Iterable[Sample] | None = None,
    on_progress: OnProgress | None = None,
) -> Quantization:
    """Quantizes the linear layers of a model in place: its weights become what their codes stand for.

    With calibration, layers are visited in order of execution, each on what the quantized layers before
    it give, and a method may fold a factor into the op before. Without it, weights are rounded to
    nearest. Layers that no calibration token reaches are rounded to nearest as well.

    Args:
        model: A transformers model, or any module of nn.Linear layers in module lists.
        scheme: For every weight, rounded to nearest; or a recipe.
        calibration: Keyword arguments of the model's forward, one dict for each sample or batch.
        on_progress: Called after each weight.

    Raises:
        WeightError: A weight that is not finite, named; or there is none to quantize.
        CalibrationError: The recipe needs calibration and there is none, or a sample does not fit; names it.
    """
    recipe = as_recipe(scheme)
    schemes = schemes_of(model, recipe)
    if not schemes:
        raise WeightError(f"{type(model).__name__}: expected at least one linear layer to quantize, found none")
    tensors: dict[str, QuantizedTensor] = {}
    if calibration is not None:
        linear = {name: scheme for name, scheme in schemes.items() if not is_embedding(name)}
        tensors = _calibrated(model, recipe, linear, calibration, on_progress)
    else:
        check_needs_no_calibration(recipe)
    round_to_nearest(model, schemes, tensors, on_progress)
    return Quantization(tensors=tensors, recipe=recipe)


def schemes_of(model: nn.Module, recipe: Recipe) -> dict[str, Scheme]:
    """The parameters that a recipe quantizes, tied ones once."""
    schemes = {}
    for name, param in model.named_parameters():
        scheme = recipe.scheme_of(name)
        is_table = recipe.embeddings == "int4" and is_embedding(name) and param.dim() == 2
        if scheme and param.dtype in SCALE_DTYPES and (is_table or is_linear_weight(name, tuple(param.shape))):
            schemes[name] = scheme
    return schemes


def check_needs_no_calibration(recipe: Recipe) -> None:
    """Refuses a recipe that cannot do without activations.

    Raises:
        CalibrationError: Names the method.
    """
    for part in recipe.used_parts:
        if part.needs_calibration:
            raise CalibrationError(f"method {method_name(part.method)}: expected calibration data, got none")


def methods_of(recipe: Recipe, names: Iterable[str]) -> list[Method]:
    """The methods that these weights meet."""
    return [part.method for part in map(recipe.part, names) if part is not None]


def check_needs_no_gradients(recipe: Recipe, names: Iterable[str]) -> None:
    """Refuses a recipe that only a model in memory can be quantized by.

    Raises:
        CalibrationError: Names the method.
    """
    for method in methods_of(recipe, names):
        if method.needs_gradients:
            raise CalibrationError(
                f"method {method_name(method)}: expected a model in memory (quantize), for it needs gradients"
            )


def visit_with(recipe: Recipe) -> Callable[[Site], SiteResult]:
    """Quantizes each site by the method of its part."""

    def visit(site: Site) -> SiteResult:
        part = recipe.part(next(iter(site.weights)))
        assert part is not None
        return part.method.quantize_site(site)

    return visit


def _calibrated(
    model: nn.Module,
    recipe: Recipe,
    schemes: Mapping[str, Scheme],
    calibration: Iterable[Sample],
    on_progress: OnProgress | None,
) -> dict[str, QuantizedTensor]:
    samples = read_samples(calibration)
    methods = methods_of(recipe, schemes)
    visual = None
    if any(method.needs_gradients for method in methods):
        visual = visual_weights(model, samples, schemes.keys())
    tensors: dict[str, QuantizedTensor] = {}

    def store(name: str, value: QuantizedTensor | Tensor) -> None:
        if isinstance(value, QuantizedTensor):
            tensors[name] = value

    walk(
        model,
        samples,
        visit_with(recipe),
        schemes=schemes,
        needs_second_moment=any(method.needs_second_moment for method in methods),
        visual_weights=visual,
        store=store,
        on_progress=on_progress,
    )
    return tensors


@torch.no_grad()
def round_to_nearest(
    model: nn.Module,
    schemes: Mapping[str, Scheme],
    tensors: dict[str, QuantizedTensor],
    on_progress: OnProgress | None = None,
) -> None:
    """Quantizes in place, without activations, the weights that `tensors` lacks, and adds them to it."""
    params = dict(model.named_parameters())
    total = sum(params[name].numel() for name in schemes)
    done = sum(params[name].numel() for name in tensors)
    for name, scheme in schemes.items():
        if name not in tensors:
            tensors[name] = quantize_tensor(params[name], scheme, name=name)
            params[name].copy_(dequantize(tensors[name]))
            done += params[name].numel()
            if on_progress is not None:
                on_progress(done, total, name)
