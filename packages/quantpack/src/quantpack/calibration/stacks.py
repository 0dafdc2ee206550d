"""Layer stacks: modules that pass one hidden state on, each to the next.

While a model runs on calibration data, the layers of a stack are never called through the model:
they answer in its place, with a placeholder, or with what they gave before. So inputs of any part of
the model are had without computing the layers in front of it again, and without their weights.
"""

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

# (number of the layer, its forward's arguments) -> what the layer gives
Answer = Callable[..., Any]


class _Hidden:
    """Stands for the hidden state in a layer's stored arguments."""


HIDDEN = _Hidden()


class NotAChainError(Exception):
    """A layer does not take what the one before it gave: the layers are no stack."""


@dataclass(eq=False, kw_only=True, slots=True)
class Stack:
    """Layers in order of execution.

    Attributes:
        name: Of the module list.
        layers: Its elements.
        extras: What a layer's output tuple holds after the hidden state; () where a layer gives a plain
            tensor; None until a layer has run.
    """

    name: str
    layers: tuple[nn.Module, ...]
    extras: tuple[Any, ...] | None = None
    is_tuple: bool = False

    def learn(self, output: Any) -> None:
        """Remembers the form of a layer's output.

        Raises:
            NotAChainError: It does not begin with a hidden state.
        """
        self.is_tuple = isinstance(output, tuple | list)
        if not isinstance(output[0] if self.is_tuple and output else output, Tensor):
            raise NotAChainError(self.name)
        self.extras = tuple(output[1:]) if self.is_tuple else ()

    def wrap(self, hidden: Tensor) -> Any:
        """A layer's output that holds this hidden state."""
        return (hidden, *(self.extras or ())) if self.is_tuple else hidden


@dataclass(eq=False, kw_only=True, slots=True)
class Traversal:
    """One pass of a sample through a stack; a tower that reads image after image makes several.

    Attributes:
        state: The hidden state that the next layer takes.
        calls: (args, kwargs) of each layer, with HIDDEN in place of the state. Layers of one stack may
            differ here: windowed and full attention.
        outputs: Hidden states after the layers whose output the rest of the model reads.
    """

    state: Tensor
    calls: list[tuple[tuple[Any, ...], dict[str, Any]]] = field(default_factory=list)
    outputs: dict[int, Tensor] = field(default_factory=dict)

    def arguments(self, index: int) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """What layer `index` is called with."""
        args, kwargs = self.calls[index]
        filled = tuple(self.state if value is HIDDEN else value for value in args)
        return filled, {name: self.state if value is HIDDEN else value for name, value in kwargs.items()}


class Recorder:
    """Answers for a stack with placeholders and keeps what each layer was called with.

    Args:
        stack: Whose layers it answers for.
        poisoned: Layers whose placeholder is NaN, to see what reads them.
        run_first: Runs layer 0 for real where the form of its output is not known yet.
    """

    def __init__(
        self,
        stack: Stack,
        *,
        poisoned: frozenset[int] = frozenset(),
        run_first: Callable[..., Any] | None = None,
        on_enter: Callable[[Tensor], None] | None = None,
    ) -> None:
        self.traversals: list[Traversal] = []
        self._stack = stack
        self._poisoned = poisoned
        self._run_first = run_first
        self._on_enter = on_enter
        self._placeholder: Tensor | None = None

    def __call__(self, index: int, *args: Any, **kwargs: Any) -> Any:
        """The answer of layer `index`.

        Raises:
            NotAChainError: It was not given what the layer before it gave.
        """
        if index == 0:
            self._enter(args, kwargs)
        traversal = self.traversals[-1] if self.traversals else None
        if traversal is None or index != len(traversal.calls):
            raise NotAChainError(self._stack.name)
        if index == 0 and self._stack.extras is None and self._run_first is not None:
            self._stack.learn(self._run_first(*args, **kwargs))
        stored_args = tuple(self._stored(value) for value in args)
        stored_kwargs = {name: self._stored(value) for name, value in kwargs.items()}
        if not any(value is HIDDEN for value in (*stored_args, *stored_kwargs.values())):
            raise NotAChainError(self._stack.name)
        traversal.calls.append((stored_args, stored_kwargs))
        # A new tensor each time: it is known again by its identity.
        self._placeholder = traversal.state.clone()
        if index in self._poisoned:
            self._placeholder.fill_(torch.nan)
        return self._stack.wrap(self._placeholder)

    def _enter(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        tensors = [v for v in (*args, *kwargs.values()) if isinstance(v, Tensor) and v.is_floating_point()]
        if not tensors:
            raise NotAChainError(self._stack.name)
        self._placeholder = tensors[0]
        self.traversals.append(Traversal(state=tensors[0].detach()))
        if self._on_enter is not None:
            self._on_enter(tensors[0])

    def _stored(self, value: Any) -> Any:
        if value is self._placeholder:
            return HIDDEN
        # A cache would grow each time a layer runs.
        return None if hasattr(value, "get_seq_length") else value


class Replay:
    """Answers for a stack with what its layers gave before."""

    def __init__(self, stack: Stack, traversals: Sequence[Traversal]) -> None:
        self._stack = stack
        self._left = iter(traversals)
        self._current: Traversal | None = None

    def __call__(self, index: int, *args: Any, **kwargs: Any) -> Any:
        """The answer of layer `index`; the input's own shape where nothing reads the output."""
        if index == 0:
            self._current = next(self._left)
        assert self._current is not None
        hidden = self._current.outputs.get(index)
        return self._stack.wrap(torch.zeros_like(self._current.state) if hidden is None else hidden)


@contextmanager
def answering(stack: Stack, answer: Answer) -> Iterator[None]:
    """Puts `answer` in place of the forward of each layer."""
    hidden_before = [layer.__dict__.get("forward") for layer in stack.layers]
    for index, layer in enumerate(stack.layers):
        layer.__dict__["forward"] = partial(answer, index)
    try:
        yield
    finally:
        for layer, before in zip(stack.layers, hidden_before, strict=True):
            del layer.__dict__["forward"]
            if before is not None:
                layer.__dict__["forward"] = before


def find_stacks(model: nn.Module, linears: Collection[str], excluded: Collection[str] = ()) -> list[Stack]:
    """Module lists of layers that hold some of `linears`; which of them chain is only seen when they run.

    A list inside a layer of another list (experts) belongs to that layer. Those `excluded` are no stacks.
    """
    stacks: list[Stack] = []
    for name, module in model.named_modules():
        inside = any(name.startswith(f"{stack.name}.") for stack in stacks)
        if not isinstance(module, nn.ModuleList) or len(module) == 0 or inside or name in excluded:
            continue
        layers = tuple(module)
        are_layers = len({type(layer) for layer in layers}) == 1 and not isinstance(layers[0], nn.Linear)
        if are_layers and any(linear.startswith(f"{name}.") for linear in linears):
            stacks.append(Stack(name=name, layers=layers))
    return stacks
