"""A model larger than memory: parameters are there while they are needed, and on the meta device otherwise.

accelerate's offload hooks with a weights map do nearly this. They load one module's own parameters on
each of its calls, so a layer is read again for every sample, and they miss a weight that its parent
reads without calling its owner (SigLIP2's position table, the output matrix of a pooling head). What a
walk needs besides, holding one layer through several passes, would be ours to write anyway, so there
is no dependency on it.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import wraps
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel

from quantpack.calibration.running import module_from
from quantpack.calibration.stacks import find_stacks
from quantpack.errors import ModelMismatchError


def build_empty(model_class: type[PreTrainedModel], config: PreTrainedConfig, dtype: torch.dtype) -> PreTrainedModel:
    """A model whose parameters are on the meta device and whose buffers are real, in eval mode.

    Args:
        model_class: Of transformers, or one that fills its buffers in `_init_weights` as theirs do.
        config: Of the model.
        dtype: Of its parameters.

    Raises:
        ModelMismatchError: The model does not fill one of its buffers; names it.
    """
    with torch.device("meta"):
        model = model_class._from_config(config, dtype=dtype)
    made: dict[str, Tensor] = {}
    for path, module in model.named_modules():
        for leaf, buffer in module.named_buffers(recurse=False):
            if buffer.is_meta and leaf in module._non_persistent_buffers_set:
                made[f"{path}.{leaf}"] = module._buffers[leaf] = _unfilled(buffer)
    # On meta parameters this does nothing; transformers itself fills such buffers so after loading.
    model.initialize_weights()
    for name, buffer in made.items():
        if buffer.is_floating_point() and bool(torch.isnan(buffer).any()):
            raise ModelMismatchError(f"{name}: expected the model to fill its own buffer, found it empty")
    model.eval()
    return model


class StreamedModel:
    """Gives a model's parameters their values just before they are used, and takes them away after.

    A layer of a module list is loaded as a whole; any other module with its own parameters and those of
    its children that have no children, for parents read these without calling them. Shared parameters
    are loaded once. The model runs as any other until `close`.

    Args:
        model: From `build_empty`; is changed in place.
        read: The value of a parameter or persistent buffer by its (first) name in the model. Asked again
            each time, so what a walk has changed must be what it answers from then on.
    """

    def __init__(self, model: PreTrainedModel, read: Callable[[str], Tensor]) -> None:
        self.model = model
        self._read = read
        self._held: Counter[str] = Counter()
        self._first_names: dict[str, str] = {}
        self._places: dict[str, list[tuple[nn.Module, str]]] = {}
        self._empty: dict[str, nn.Parameter] = {}
        self._wrapped: list[nn.Module] = []
        first_of: dict[int, str] = {}
        for name, param in model.named_parameters(remove_duplicate=False):
            first = first_of.setdefault(id(param), name)
            path, _, leaf = name.rpartition(".")
            self._first_names[name] = first
            self._places.setdefault(first, []).append((model.get_submodule(path), leaf))
            self._empty[first] = param
        for path, module in model.named_modules():
            for leaf, buffer in module.named_buffers(recurse=False):
                if buffer.is_meta:
                    module._buffers[leaf] = self._value(f"{path}.{leaf}".lstrip("."), buffer)
        for module, names in _units(model):
            self._wrap(module, names)

    @contextmanager
    def hold(self, names: Iterable[str]) -> Iterator[None]:
        """Keeps these parameters in memory inside the context; pass it to `walk`.

        Raises:
            ModelMismatchError: A value has another shape than the model's; names it.
        """
        firsts = list(dict.fromkeys(self._first_names[name] for name in names))
        held = []
        try:
            for first in firsts:
                if self._held[first] == 0:
                    self._put(first, nn.Parameter(self._value(first, self._empty[first]), requires_grad=False))
                self._held[first] += 1
                held.append(first)
            yield
        finally:
            for first in held:
                self._held[first] -= 1
                if self._held[first] == 0:
                    self._put(first, self._empty[first])

    def num_bytes_held(self) -> int:
        """Bytes of the parameters that are in memory now."""
        held = (self._empty[first] for first, count in self._held.items() if count)
        return sum(param.numel() * param.element_size() for param in held)

    def close(self) -> None:
        """Gives the modules their own forward back; the parameters stay on the meta device."""
        for module in self._wrapped:
            del module.__dict__["forward"]
        self._wrapped.clear()

    def _put(self, first: str, param: nn.Parameter) -> None:
        for module, leaf in self._places[first]:
            module._parameters[leaf] = param

    def _value(self, name: str, like: Tensor) -> Tensor:
        value = self._read(name)
        if value.shape != like.shape:
            raise ModelMismatchError(f"{name}: expected {list(like.shape)}, got {list(value.shape)}")
        return value.to(like.dtype)

    def _wrap(self, module: nn.Module, names: list[str]) -> None:
        forward: Callable[..., Any] = module.forward

        # Not a hook: what answers in a layer's place must not make it load.
        @wraps(forward)
        def streamed(*args: Any, **kwargs: Any) -> Any:
            with self.hold(names):
                return forward(*args, **kwargs)

        module.__dict__["forward"] = streamed
        self._wrapped.append(module)


def _units(model: nn.Module) -> list[tuple[nn.Module, list[str]]]:
    """Modules, and names of the parameters that must be there while they run."""
    linears = [name for name, module in model.named_modules() if isinstance(module, nn.Linear)]
    layers = {
        f"{stack.name}.{index}": layer
        for stack in find_stacks(model, linears)
        for index, layer in enumerate(stack.layers)
    }
    # Large, and always called themselves.
    tables = [module_from(model, f"get_{side}_embeddings") for side in ("input", "output")]
    units = []
    for path, module in model.named_modules():
        prefix = f"{path}." if path else ""
        if any(path.startswith(f"{layer}.") for layer in layers):
            continue
        names = [prefix + leaf for leaf, _ in module.named_parameters(recurse=path in layers)]
        if path not in layers:
            for name, child in module.named_children():
                if not list(child.children()) and child not in tables:
                    names += [f"{prefix}{name}.{leaf}" for leaf, _ in child.named_parameters(recurse=False)]
        if names:
            units.append((module, names))
    return units


def _unfilled(buffer: Tensor) -> Tensor:
    if buffer.is_floating_point():
        return torch.full_like(buffer, torch.nan, device="cpu")
    return torch.zeros_like(buffer, device="cpu")
