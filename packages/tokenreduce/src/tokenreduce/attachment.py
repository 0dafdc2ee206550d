"""A reducer put into one model, between its vision encoder and its language model.

Only the instance changes: two bound methods and a handle in its `__dict__`. Bound methods, not closures,
so that a deep copy of an attached model runs the copy's own weights.
"""

import functools
import inspect
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from types import MethodType
from typing import Any

import torch

from tokenreduce.errors import AttachmentError, PlaceholderError, PolicyError
from tokenreduce.families import Family, family_of
from tokenreduce.generation import check_cache, given_mask, restore_prompt, shorten_limits
from tokenreduce.policy import ReductionPolicy
from tokenreduce.reduced_call import check_limit, check_supported, reduce_call
from tokenreduce.reducers.dfmr import DfmrReducer
from tokenreduce.reducing import Reducer

_HANDLE = "_token_reduction"
_OPTIONS = ("max_visual_tokens", "image_factors")


@dataclass(kw_only=True, eq=False)
class ReductionHandle:
    """What an attachment says about itself.

    Attributes:
        reducer: The attached reducer; another one may be put in its place between two calls.
        max_visual_tokens: Limit of visual tokens for each row of a batch, for calls that bring none; None: none.
        last_num_visual_tokens: Visual tokens of each image of the last call that had images.
        last_factors: Pooling factor of each view of that call, None where its tokens are a selection.
        last_columns: [B, N] int64: the caller's column each column of that call's logits stands for, -1 for
            padding; None before the first such call.
    """

    reducer: Reducer
    max_visual_tokens: int | None = None
    last_num_visual_tokens: list[int] = field(default_factory=list)
    last_factors: list[int | None] = field(default_factory=list)
    last_columns: torch.Tensor | None = None
    _family: Family = field(repr=False)
    _before: dict[str, Any] = field(default_factory=dict, repr=False)

    @property
    def policy(self) -> ReductionPolicy | None:
        """The policy of an attached DFMR; None for reducers without one."""
        policy = getattr(self.reducer, "policy", None)
        return policy if isinstance(policy, ReductionPolicy) else None


def attach(
    model: Any, policy_or_reducer: ReductionPolicy | Reducer, max_visual_tokens: int | None = None
) -> ReductionHandle:
    """Makes `model` reduce each image's visual tokens, in `forward` and in `generate`.

    Callers go on giving the full number of placeholders for every image (64 for an 8 x 8 grid); the surplus
    ones are taken out of input_ids, attention_mask, position_ids, labels and mm_token_type_ids inside. The model
    gains no parameter, buffer or state-dict key.

    Two more options may be given to every call: `max_visual_tokens`, a limit for each row of the batch in place of
    the attachment's own; and `image_factors`, one integer an image: the pooling factor wanted for all its views, 0
    for the reducer's own choice.

    Args:
        model: Any model of `tokenreduce.families.registry`.
        policy_or_reducer: A DFMR policy, or any reducer.
        max_visual_tokens: Limit of visual tokens for each row of a batch; None: none.

    Raises:
        UnsupportedModelError: The model is none of these, or not one that the reducer can work in.
        AttachmentError: A reducer is attached already.
        GridError: The tower's tokens do not fill its grid, for example because CLS is left in.
        PolicyError: The limit is not a positive integer, or there is neither policy nor reducer.
    """
    family = family_of(model)
    if _HANDLE in model.__dict__:
        raise AttachmentError(f"{type(model).__name__}: expected no attached policy, got one; detach it first")
    if isinstance(policy_or_reducer, ReductionPolicy):
        reducer: Reducer = DfmrReducer(policy_or_reducer)
    elif hasattr(policy_or_reducer, "reduce"):
        reducer = policy_or_reducer
    else:
        got = type(policy_or_reducer).__name__
        raise PolicyError(f"policy_or_reducer: expected a ReductionPolicy or a reducer, got {got}")
    check_limit(max_visual_tokens)
    check_supported(model, family, reducer)
    family.check(model)
    before = {name: model.__dict__[name] for name in _METHODS if name in model.__dict__}
    handle = ReductionHandle(reducer=reducer, max_visual_tokens=max_visual_tokens, _family=family, _before=before)
    setattr(model, _HANDLE, handle)
    # Set as plain attributes of the instance.
    for name in _METHODS:
        model.__dict__[name] = MethodType(_method(model.__class__, name), model)
    return handle


def detach(model: Any) -> None:
    """Leaves `model` as it was before `attach`.

    Raises:
        AttachmentError: Nothing is attached, or someone replaced `forward` or `generate` after `attach`.
    """
    handle = model.__dict__.get(_HANDLE)
    if handle is None:
        raise AttachmentError(f"{type(model).__name__}: expected an attached policy, got none")
    for name in _METHODS:
        if getattr(model.__dict__.get(name), "__func__", None) is not _method(model.__class__, name):
            raise AttachmentError(f"{name}: expected the attached method, got another set after attach; undo it first")
    for name in (*_METHODS, _HANDLE):
        del model.__dict__[name]
    model.__dict__.update(handle._before)


def _forward(self: Any, *args: Any, **kwargs: Any) -> Any:
    original = _original(self, "forward")
    arguments, options = _by_name(original, args, kwargs)
    if not _has_images(self, arguments):
        return original(**arguments)
    if isinstance(arguments.get("logits_to_keep"), torch.Tensor):
        raise PlaceholderError("logits_to_keep: expected an integer beside images (columns move), got a tensor")
    return original(**_reduce(self, arguments, options, for_generate=False))


def _generate(self: Any, *args: Any, **kwargs: Any) -> Any:
    original = _original(self, "generate")
    arguments, options = _by_name(original, args, kwargs)
    check_cache(self, arguments)
    if not _has_images(self, arguments):
        return original(**arguments)
    prompt = arguments.pop("inputs", None)
    if prompt is not None:
        arguments["input_ids"] = prompt
    # Prompts end together, so that every row's first new token follows its last prompt token.
    arguments["attention_mask"] = given_mask(self, arguments)
    prompt = arguments.get("input_ids")
    with torch.no_grad():
        reduced = _reduce(self, arguments, options, for_generate=True)
    num_columns = reduced["input_ids"].shape[1]
    assert prompt is not None  # reduce_call has checked it.
    shorten_limits(self, reduced, prompt.shape[1] - num_columns)
    return restore_prompt(original(**reduced), prompt, num_columns)


_METHODS: dict[str, Callable[..., Any]] = {"forward": _forward, "generate": _generate}


@functools.cache
def _method(kind: Hashable, name: str) -> Callable[..., Any]:
    """The attached method of a class; its signature, which Trainer and generate look at, has the options as well."""
    original = getattr(kind, name)

    @functools.wraps(original)
    def method(self: Any, *args: Any, **kwargs: Any) -> Any:
        return _METHODS[name](self, *args, **kwargs)

    signature = inspect.signature(original)
    options = [inspect.Parameter(option, inspect.Parameter.KEYWORD_ONLY, default=None) for option in _OPTIONS]
    parameters = list(signature.parameters.values())
    # Keyword arguments stand before **kwargs, which both methods end with.
    method.__signature__ = signature.replace(parameters=[*parameters[:-1], *options, parameters[-1]])  # type: ignore[attr-defined]
    return method


def _reduce(model: Any, arguments: dict[str, Any], options: dict[str, Any], for_generate: bool) -> dict[str, Any]:
    handle: ReductionHandle = model.__dict__[_HANDLE]
    if options["max_visual_tokens"] is None:
        options["max_visual_tokens"] = handle.max_visual_tokens
    made = reduce_call(model, handle._family, handle.reducer, arguments, for_generate=for_generate, **options)
    handle.last_num_visual_tokens, handle.last_columns = made.num_visual_tokens, made.columns
    handle.last_factors = made.factors
    return made.arguments


def _original(model: Any, name: str) -> Any:
    handle: ReductionHandle = model.__dict__[_HANDLE]
    return handle._before.get(name) or MethodType(getattr(type(model), name), model)


def _by_name(function: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """The call's arguments by name, and the options of this package taken out of them."""
    arguments = dict(zip(inspect.signature(function).parameters, args, strict=False)) | kwargs
    return arguments, {name: arguments.pop(name, None) for name in _OPTIONS}


def _has_images(model: Any, arguments: dict[str, Any]) -> bool:
    """Whether the call has images. If not, what describes them is taken out: models choke on empty tensors."""
    handle: ReductionHandle = model.__dict__[_HANDLE]
    inputs = handle._family.image_inputs
    pixels = arguments.get(inputs[0])
    if pixels is not None and len(pixels) > 0:
        return True
    for name in inputs if pixels is not None else inputs[:1]:
        arguments.pop(name, None)
    return False
