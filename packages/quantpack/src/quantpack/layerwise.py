"""Quantizes a model straight from its files, layer by layer, so that it may be larger than memory."""

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import AutoConfig, PreTrainedModel

from quantpack.affine import QuantizedTensor, dequantize
from quantpack.calibration.names import parameter_names, parameter_reader
from quantpack.calibration.samples import Sample
from quantpack.calibration.stacks import find_stacks
from quantpack.calibration.streaming import StreamedModel, build_empty
from quantpack.calibration.walk import walk
from quantpack.errors import CalibrationError, SourceError
from quantpack.models import model_class
from quantpack.progress import OnProgress
from quantpack.quantizing import check_needs_no_gradients, methods_of, visit_with
from quantpack.recipe import Recipe
from quantpack.scheme import Scheme
from quantpack.source import Source
from vlmpress.artifact import import_model_code

# Takes the codes of a weight, by its name in the files.
AddQuantized = Callable[[str, QuantizedTensor], None]


def quantize_layerwise(
    directory: Path,
    source: Source,
    recipe: Recipe,
    schemes: Mapping[str, Scheme],
    calibration: Iterable[Sample],
    add: AddQuantized,
    on_progress: OnProgress | None = None,
) -> dict[str, Tensor]:
    """Walks the model of a directory on calibration data with one layer in memory at a time.

    Args:
        directory: Of the model; its config says the class.
        source: Its tensors.
        recipe: Methods.
        schemes: Weights of linear layers to quantize, by their names in the files.
        calibration: Keyword arguments of the model's forward.
        add: Called for each weight that has got its codes.
        on_progress: Called after each weight.

    Returns:
        Tensors that took a factor, by their names in the files; to be stored in place of the source's.

    Raises:
        CalibrationError: A sample does not fit, a method needs gradients, or the files' tensors are
            merged by transformers; names it.
        ModelMismatchError: The config describes another model.
    """
    check_needs_no_gradients(recipe, schemes)
    model = _empty_model(directory, source)
    names = parameter_names(model, source.shapes)
    changes = _Changes(model, {parameter: name for name, parameter in names.items()}, add)
    from_files = parameter_reader(model, source.shapes, source.read)

    def read(name: str) -> Tensor:
        return changes.tensors[name] if name in changes.tensors else from_files(name)

    def report(done: int, total: int, name: str) -> None:
        if on_progress is not None:
            on_progress(done, total, changes.file_names[name])

    streamed = StreamedModel(model, read)
    try:
        walk(
            model,
            calibration,
            visit_with(recipe),
            schemes={names[name]: scheme for name, scheme in schemes.items() if name in names},
            needs_second_moment=any(method.needs_second_moment for method in methods_of(recipe, schemes)),
            hold=streamed.hold,
            store=changes.store,
            on_progress=report,
        )
    finally:
        streamed.close()
    stored = {changes.file_names[name]: value for name, value in changes.tensors.items()}
    return {name: value for name, value in stored.items() if name not in schemes}


class _Changes:
    """What a walk has made of a model, as far as the rest of the walk reads it again."""

    def __init__(self, model: nn.Module, file_names: Mapping[str, str], add: AddQuantized) -> None:
        self.tensors: dict[str, Tensor] = {}
        self.file_names = file_names
        self._add = add
        self._stacks = tuple(f"{stack.name}." for stack in find_stacks(model, _linears(model)))

    def store(self, name: str, value: QuantizedTensor | Tensor) -> None:
        """Passes codes on; keeps what they stand for only between the stacks, whose layers nobody asks for again."""
        if not isinstance(value, QuantizedTensor):
            self.tensors[name] = value
            return
        self._add(self.file_names[name], value)
        if not name.startswith(self._stacks):
            self.tensors[name] = dequantize(value)


def _empty_model(directory: Path, source: Source) -> PreTrainedModel:
    import_model_code(directory)
    try:
        config = AutoConfig.from_pretrained(directory, local_files_only=True)
    except (OSError, ValueError) as error:
        raise SourceError(f"{directory}: expected a model's config, got {error}") from error
    return build_empty(model_class(config, directory), config, _dtype(source))


def _linears(model: nn.Module) -> list[str]:
    return [name for name, module in model.named_modules() if isinstance(module, nn.Linear)]


def _dtype(source: Source) -> torch.dtype:
    """Of the matrices: what scales are stored in."""
    for name, shape in source.shapes.items():
        if len(shape) == 2:
            found = source.read(name).dtype
            if found.is_floating_point:
                return found
    raise CalibrationError("calibration: expected a model with floating matrices, found none")
