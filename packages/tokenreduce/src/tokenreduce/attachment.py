"""A policy put into one Llava model, between its vision tower and its projector.

Only the instance changes: two bound methods and a handle in its `__dict__`. Bound methods, not closures,
so that a deep copy of an attached model runs the copy's own weights.
"""

import functools
import inspect
from dataclasses import dataclass, field
from types import MethodType
from typing import Any

import torch
from transformers import LlavaForConditionalGeneration
from transformers.modeling_outputs import BaseModelOutputWithPooling

from tokenreduce.dfmr import dfmr
from tokenreduce.errors import AttachmentError, PlaceholderError, UnsupportedModelError
from tokenreduce.generation import given_mask, restore_prompt, shorten_limits
from tokenreduce.policy import ReductionPolicy
from tokenreduce.pruning import Batch, kept_columns, prune
from tokenreduce.vision import check_grid, features_of

_HANDLE = "_token_reduction"
_METHODS = ("forward", "generate")


@dataclass(kw_only=True, eq=False)
class ReductionHandle:
    """What an attachment says about itself.

    Attributes:
        policy: The attached policy.
        last_num_visual_tokens: Visual tokens of each image of the last call that had images.
        last_columns: [B, N] int64: the caller's column each column of that call's logits stands for, -1 for
            padding; None before the first such call.
    """

    policy: ReductionPolicy
    last_num_visual_tokens: list[int] = field(default_factory=list)
    last_columns: torch.Tensor | None = None
    _before: dict[str, Any] = field(default_factory=dict, repr=False)


def attach(model: LlavaForConditionalGeneration, policy: ReductionPolicy) -> ReductionHandle:
    """Makes `model` reduce each image's visual tokens under `policy`, in `forward` and in `generate`.

    Callers go on giving the full number of placeholders for every image (64 for an 8 x 8 grid); the surplus
    ones are taken out of input_ids, attention_mask, position_ids and labels inside. The model gains no
    parameter, buffer or state-dict key.

    Raises:
        UnsupportedModelError: The model is not a LlavaForConditionalGeneration.
        AttachmentError: A policy is attached already.
        GridError: The tower's tokens do not fill its grid, for example because CLS is left in.
    """
    if not isinstance(model, LlavaForConditionalGeneration):
        raise UnsupportedModelError(f"model: expected a LlavaForConditionalGeneration, got {type(model).__name__}")
    if _HANDLE in model.__dict__:
        raise AttachmentError(f"{type(model).__name__}: expected no attached policy, got one; detach it first")
    check_grid(model)
    before = {name: model.__dict__[name] for name in _METHODS if name in model.__dict__}
    handle = ReductionHandle(policy=policy, _before=before)
    setattr(model, _HANDLE, handle)
    # Set as plain attributes of the instance; wraps keeps the signatures that Trainer and generate look at.
    for name, method in (("forward", _forward), ("generate", _generate)):
        model.__dict__[name] = MethodType(method, model)
    return handle


def detach(model: LlavaForConditionalGeneration) -> None:
    """Leaves `model` as it was before `attach`.

    Raises:
        AttachmentError: No policy is attached, or someone replaced `forward` or `generate` after `attach`.
    """
    handle = model.__dict__.get(_HANDLE)
    if handle is None:
        raise AttachmentError(f"{type(model).__name__}: expected an attached policy, got none")
    for name, method in (("forward", _forward), ("generate", _generate)):
        if getattr(model.__dict__.get(name), "__func__", None) is not method:
            raise AttachmentError(f"{name}: expected the attached method, got another set after attach; undo it first")
    for name in (*_METHODS, _HANDLE):
        del model.__dict__[name]
    model.__dict__.update(handle._before)


@functools.wraps(LlavaForConditionalGeneration.forward)
def _forward(self: LlavaForConditionalGeneration, *args: Any, **kwargs: Any) -> Any:
    original = _original(self, "forward")
    arguments = _by_name(original, args, kwargs)
    if not _has_images(arguments):
        # Neither the tower nor generate can do anything with no images, or with None for them.
        arguments.pop("pixel_values", None)
        return original(**arguments)
    if isinstance(arguments.get("logits_to_keep"), torch.Tensor):
        raise PlaceholderError("logits_to_keep: expected an integer beside images (columns move), got a tensor")
    return original(**_reduce(self, arguments, pad_left=False))


@functools.wraps(LlavaForConditionalGeneration.generate)
def _generate(self: LlavaForConditionalGeneration, *args: Any, **kwargs: Any) -> Any:
    original = _original(self, "generate")
    arguments = _by_name(original, args, kwargs)
    if not _has_images(arguments):
        # Neither the tower nor generate can do anything with no images, or with None for them.
        arguments.pop("pixel_values", None)
        return original(**arguments)
    prompt = arguments.pop("inputs", None)
    if prompt is not None:
        arguments["input_ids"] = prompt
    # Prompts end together, so that every row's first new token follows its last prompt token.
    arguments["attention_mask"] = given_mask(self, arguments)
    prompt = arguments.get("input_ids")
    with torch.no_grad():
        reduced = _reduce(self, arguments, pad_left=True)
    num_columns = reduced["input_ids"].shape[1]
    assert prompt is not None  # _reduce has checked it.
    shorten_limits(self, reduced, prompt.shape[1] - num_columns)
    return restore_prompt(original(**reduced), prompt, num_columns)


def _reduce(model: LlavaForConditionalGeneration, arguments: dict[str, Any], pad_left: bool) -> dict[str, Any]:
    """The same call with images encoded and reduced, and their surplus placeholders gone."""
    reduced = dict(arguments)
    input_ids = reduced.get("input_ids")
    if input_ids is None or reduced.get("inputs_embeds") is not None:
        raise PlaceholderError("input_ids: expected token ids beside images, got none or inputs_embeds")
    if reduced.pop("image_sizes", None) is not None:
        raise PlaceholderError("image_sizes: expected none (images of one size), got some")
    handle: ReductionHandle = model.__dict__[_HANDLE]
    policy = handle.policy
    options = {name: reduced.pop(name, None) for name in ("vision_feature_layer", "vision_feature_select_strategy")}
    features = features_of(model, reduced.pop("pixel_values"), **options)
    pooled = dfmr(features, policy.tau, policy.factors, policy.mode, policy.normalization)
    num_kept = pooled.num_tokens
    num_full = features.shape[1] * features.shape[2]
    placeholders = input_ids == model.config.image_token_id
    columns = kept_columns(placeholders, num_full, num_kept, pad_left)
    tokens = model.model.multi_modal_projector(torch.cat(pooled.pooled))
    # A list of ragged parts, as Llava's own encoder makes it, whatever the type's annotation says.
    ragged: Any = list(tokens.split(num_kept))
    reduced["mm_encoder_outputs"] = {"image": BaseModelOutputWithPooling(pooler_output=ragged)}
    if min(num_kept) < num_full:
        fields = {name: reduced.get(name) for name in ("attention_mask", "position_ids", "labels")}
        batch = prune(Batch(input_ids=input_ids, **fields), columns, _pad_token_id(model))
        reduced["input_ids"] = batch.input_ids
        made = {name: getattr(batch, name) for name in fields}
        reduced.update({name: tensor for name, tensor in made.items() if tensor is not None})
    handle.last_num_visual_tokens, handle.last_columns = num_kept, columns
    return reduced


def _original(model: LlavaForConditionalGeneration, name: str) -> Any:
    handle: ReductionHandle = model.__dict__[_HANDLE]
    return handle._before.get(name) or MethodType(getattr(type(model), name), model)


def _by_name(function: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
    return dict(zip(inspect.signature(function).parameters, args, strict=False)) | kwargs


def _has_images(arguments: dict[str, Any]) -> bool:
    pixel_values = arguments.get("pixel_values")
    return pixel_values is not None and len(pixel_values) > 0


def _pad_token_id(model: LlavaForConditionalGeneration) -> int:
    configs = (model.config, model.config.text_config, model.generation_config)
    ids = [getattr(config, "pad_token_id", None) for config in configs]
    # Never a placeholder: padding must not ask for image features.
    return next(token for token in (*ids, 0, 1) if token is not None and token != model.config.image_token_id)
