"""Runs a model on calibration samples as far as it is needed, with its layer stacks answered for."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from quantpack.calibration.samples import Sample
from quantpack.calibration.stacks import Answer, Stack, answering
from quantpack.errors import CalibrationError, QuantpackError

# (name of a linear layer, what it reads)
OnLinear = Callable[[str, Tensor], None]


# What a model's forward raises on arguments that are not for it.
FORWARD_ERRORS = (RuntimeError, ValueError, TypeError, LookupError, AttributeError)


class _Reached(BaseException):
    """The model has come as far as it should; no "except Exception" of the model catches it."""


class Runner:
    """A model, its calibration samples, and the places where a run can be watched or ended.

    Args:
        model: In eval mode while `run` runs; see `calm`.
        samples: Keyword arguments of its forward.
        stacks: Its layer stacks.
        watched: Linear layers outside the stacks, by name.
    """

    def __init__(
        self, model: nn.Module, samples: Sequence[Sample], stacks: Sequence[Stack], watched: Mapping[str, nn.Linear]
    ) -> None:
        self.model = model
        self.samples = samples
        self.stacks = stacks
        self._watched = watched
        # Logits are of no use here, and a large vocabulary makes them the largest tensors of all.
        self.head = module_from(model, "get_output_embeddings")

    def run(self, number: int, answers: Mapping[str, Answer], on_linear: OnLinear | None = None) -> list[Tensor]:
        """Runs sample `number` until it ends, comes to the head, or enters a stack that nothing answers for.

        Args:
            number: Of the sample.
            answers: By the name of the stack.
            on_linear: Called before each watched linear layer.

        Returns:
            The floating tensors that it came to: the head's input, or the model's output.

        Raises:
            CalibrationError: The model's forward failed; names the sample.
        """
        reached: list[Tensor] = []

        def stop(*args: Any, **kwargs: Any) -> None:
            reached.extend(_floats((args[1:], kwargs)))
            raise _Reached

        with ExitStack() as undo:
            for stack in self.stacks:
                undo.enter_context(answering(stack, answers.get(stack.name, stop)))
            for name, linear in self._watched.items() if on_linear is not None else ():
                assert on_linear is not None
                undo.enter_context(reading(linear, name, on_linear))
            if self.head is not None:
                undo.enter_context(_before(self.head, stop))
            try:
                reached.extend(_floats(self.model(**self.samples[number])))
            except _Reached:
                pass
            except QuantpackError:
                raise
            except FORWARD_ERRORS as error:
                raise refused(number, self.samples[number], error) from error
        return reached


@contextmanager
def calm(model: nn.Module) -> Iterator[None]:
    """Eval mode and no gradients; every module gets its own mode back."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for module, mode in modes:
            module.training = mode


def refused(number: int, sample: Sample, error: Exception) -> CalibrationError:
    """What to raise when a forward failed on a sample."""
    shapes = {name: list(value.shape) for name, value in sample.items() if isinstance(value, Tensor)}
    reason = " ".join(str(error).split())
    return CalibrationError(
        f"calibration sample {number}: expected what the model's forward takes, got {shapes}: "
        f"{type(error).__name__}: {reason:.300}"
    )


def module_from(model: nn.Module, method: str) -> nn.Module | None:
    """What a transformers model answers to `method`; None where it has no such module, or no such method."""
    try:
        found = getattr(model, method)()
    except (AttributeError, NotImplementedError):
        return None
    return found if isinstance(found, nn.Module) else None


@contextmanager
def reading(linear: nn.Linear, name: str, on_linear: OnLinear) -> Iterator[None]:
    """Calls `on_linear` with the name before each call of the layer inside the context."""

    def read(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        on_linear(name, args[0] if args else kwargs["input"])

    with _before(linear, read):
        yield


@contextmanager
def _before(module: nn.Module, hook: Callable[..., None]) -> Iterator[None]:
    handle = module.register_forward_pre_hook(hook, with_kwargs=True)
    try:
        yield
    finally:
        handle.remove()


def _floats(value: Any) -> list[Tensor]:
    """Floating tensors in nested tuples and mappings."""
    if isinstance(value, Tensor):
        return [value] if value.is_floating_point() else []
    if isinstance(value, Mapping):
        value = tuple(value.values())
    return [tensor for each in value for tensor in _floats(each)] if isinstance(value, tuple | list) else []
