"""A call with images made into the same call with fewer visual tokens."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from tokenreduce.errors import BudgetError, GridError, PlaceholderError, PolicyError, UnsupportedModelError
from tokenreduce.families import Encoded, Family
from tokenreduce.placeholders import image_rows, kept_columns, placed_columns
from tokenreduce.pruning import Batch, check_batch, needed_mask, prune
from tokenreduce.reducing import ReducedGrid, Reducer

_FIELDS = ("attention_mask", "position_ids", "labels", "mm_token_type_ids")


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class ReducedCall:
    """A reduced call and what was done to it.

    Attributes:
        arguments: The call for the model's own method.
        num_visual_tokens: Visual tokens left of each image.
        factors: Pooling factor of each view; None where its tokens are a selection.
        columns: [B, N] int64, see `tokenreduce.placeholders.kept_columns`.
    """

    arguments: dict[str, Any]
    num_visual_tokens: list[int]
    factors: list[int | None]
    columns: torch.Tensor


def reduce_call(
    model: Any,
    family: Family,
    reducer: Reducer,
    arguments: dict[str, Any],
    *,
    max_visual_tokens: int | None = None,
    image_factors: Sequence[int] | torch.Tensor | None = None,
    for_generate: bool = False,
) -> ReducedCall:
    """Encodes a call's images, reduces them, and takes their surplus placeholders out of its tensors.

    Args:
        model: The model.
        family: Its family.
        reducer: How to reduce.
        arguments: The call, by name; images are there. Not changed.
        max_visual_tokens: Limit of visual tokens for each row.
        image_factors: Pooling factor wanted for each image, 0 for the reducer's own choice.
        for_generate: Fill shorter rows on the left, and keep a mask; else only what the model's forward needs.

    Raises:
        PlaceholderError: Placeholders, images and the tensors beside them do not match.
        BudgetError: A row's images do not fit into the limit.
        PolicyError: An option is out of range, or the reducer has no use for it.
        UnsupportedModelError: The reducer needs what this kind of model does not give.
        FeatureError: The features cannot be reduced.
        GridError: The encoder's tokens do not fill their grid.
    """
    input_ids = _check_call(arguments, family)
    check_limit(max_visual_tokens)
    check_supported(model, family, reducer)
    encoded = family.encode(
        model, arguments, needs_attention=reducer.needs_attention, pixel_factor=reducer.pixel_factor
    )
    placeholder = input_ids == model.config.image_token_id
    rows = image_rows(placeholder, encoded.num_placeholders)
    encoded = _with_factors(encoded, image_factors)
    reduced = _reduce(reducer, encoded, rows, max_visual_tokens)
    tokens = family.embed(model, encoded, reduced)
    excess = _excess(rows, tokens, max_visual_tokens)
    if max_visual_tokens is not None and 0 < excess < max_visual_tokens:
        # A selection from a detail view of AnyRes: its newline is not the reducer's to count.
        reduced = _reduce(reducer, encoded, rows, max_visual_tokens - excess)
        tokens = family.embed(model, encoded, reduced)
    _check_counts(encoded, rows, tokens, max_visual_tokens)
    call, columns = _shorten(model, family, arguments, placeholder, encoded, reduced, tokens, for_generate)
    family.hand_over(model, call, encoded, tokens)
    return ReducedCall(
        arguments=call,
        num_visual_tokens=[len(each) for each in tokens],
        factors=[grid.factor for grid in reduced],
        columns=columns,
    )


def check_supported(model: Any, family: Family, reducer: Reducer) -> None:
    """Raises UnsupportedModelError where the reducer needs what this kind of model does not give."""
    name, kind = type(reducer).__name__, type(model).__name__
    if reducer.needs_attention and not family.gives_attention:
        raise UnsupportedModelError(f"{name}: expected a model whose vision tower's attention can be read, got {kind}")
    if reducer.pixel_factor > 1 and not family.shrinks_pixels:
        raise UnsupportedModelError(f"{name}: expected a model that takes smaller images, got {kind}")


def check_limit(max_visual_tokens: int | None) -> None:
    """Raises PolicyError unless the limit is None or a positive integer."""
    if max_visual_tokens is not None and (type(max_visual_tokens) is not int or max_visual_tokens < 1):
        raise PolicyError(f"max_visual_tokens: expected None or an integer of at least 1, got {max_visual_tokens!r}")


def _check_call(arguments: dict[str, Any], family: Family) -> torch.Tensor:
    input_ids = arguments.get("input_ids")
    if input_ids is None or arguments.get("inputs_embeds") is not None:
        raise PlaceholderError("input_ids: expected token ids beside images, got none or inputs_embeds")
    if "image" in (arguments.get("mm_encoder_outputs") or {}):
        raise PlaceholderError("mm_encoder_outputs: expected no encoded images beside raw ones, got some")
    fields = {name: arguments.get(name) for name in _FIELDS}
    check_batch(Batch(input_ids=input_ids, **fields), coordinates=family.has_coordinates)
    return input_ids


def _with_factors(encoded: Encoded, image_factors: Sequence[int] | torch.Tensor | None) -> Encoded:
    if image_factors is None:
        return encoded
    wanted = image_factors.tolist() if isinstance(image_factors, torch.Tensor) else list(image_factors)
    num_images = len(encoded.num_placeholders)
    if len(wanted) != num_images or any(type(factor) is not int or factor < 0 for factor in wanted):
        raise PolicyError(f"image_factors: expected {num_images} integers, 0 or more, one an image, got {wanted}")
    views = zip(encoded.grids, encoded.images, strict=True)
    return replace(encoded, grids=[replace(grid, factor=wanted[image] or None) for grid, image in views])


def _reduce(reducer: Reducer, encoded: Encoded, rows: Sequence[int], limit: int | None) -> list[ReducedGrid]:
    if limit is not None:
        # One limit for all rows: what the model adds itself is taken off it where a row has most of that.
        fixed = max(_sums(rows, encoded.num_fixed_tokens).values())
        if limit <= fixed:
            raise BudgetError(f"max_visual_tokens: expected more than the {fixed} the model adds itself, got {limit}")
        limit -= fixed
    reduced = reducer.reduce(encoded.grids, rows=[rows[image] for image in encoded.images], max_tokens=limit)
    if len(reduced) != len(encoded.grids):
        raise GridError(f"{type(reducer).__name__}: expected {len(encoded.grids)} reduced views, got {len(reduced)}")
    return reduced


def _check_counts(encoded: Encoded, rows: Sequence[int], tokens: Sequence[torch.Tensor], limit: int | None) -> None:
    for image, (each, full) in enumerate(zip(tokens, encoded.num_placeholders, strict=True)):
        if len(each) > full:
            raise GridError(f"image {image}: expected at most its {full} placeholders as tokens, got {len(each)}")
    excess = _excess(rows, tokens, limit)
    if excess > 0:
        raise BudgetError(f"max_visual_tokens: expected at most {limit} in every row, got {excess} more of the reducer")


def _excess(rows: Sequence[int], tokens: Sequence[torch.Tensor], limit: int | None) -> int:
    return 0 if limit is None else max(_sums(rows, [len(each) for each in tokens]).values()) - limit


def _sums(rows: Sequence[int], counts: Sequence[int]) -> Counter[int]:
    total: Counter[int] = Counter()
    for row, count in zip(rows, counts, strict=True):
        total[row] += count
    return total


def _shorten(
    model: Any,
    family: Family,
    arguments: dict[str, Any],
    placeholder: torch.Tensor,
    encoded: Encoded,
    reduced: Sequence[ReducedGrid],
    tokens: Sequence[torch.Tensor],
    for_generate: bool,
) -> tuple[dict[str, Any], torch.Tensor]:
    """The call without its images and their surplus placeholders, and the columns that are left."""
    call = {name: value for name, value in arguments.items() if name not in family.image_inputs}
    positions = family.positions(model, arguments) if arguments.get("position_ids") is None else None
    if positions is not None:
        call["position_ids"] = positions
    columns = torch.arange(placeholder.shape[1], device=placeholder.device).expand_as(placeholder)
    num_full, num_kept = list(encoded.num_placeholders), [len(each) for each in tokens]
    if num_kept != num_full:
        columns = _columns(call, placeholder, num_full, num_kept, for_generate)
        places = family.places(encoded, reduced)
        if places is not None:
            places = placed_columns(placeholder, columns, num_full, num_kept, places)
        call |= _pruned(model, call, columns, places, for_generate)
    if positions is not None:
        family.remember_positions(model, positions, _num_left(columns, arguments.get("attention_mask")))
    return call, columns


def _columns(
    call: dict[str, Any],
    placeholder: torch.Tensor,
    num_full: Sequence[int],
    num_kept: Sequence[int],
    for_generate: bool,
) -> torch.Tensor:
    mask = call.get("attention_mask")
    visible = mask.bool() if mask is not None and mask.ndim == 2 else None
    # generate needs prompts that end together; elsewhere rows that did go on doing so.
    pad_left = for_generate or (visible is not None and not bool(visible[:, 0].all()))
    return kept_columns(placeholder, num_full, num_kept, pad_left, visible)


def _pruned(
    model: Any, call: dict[str, Any], columns: torch.Tensor, places: torch.Tensor | None, for_generate: bool
) -> dict[str, torch.Tensor | None]:
    fields = {name: call.get(name) for name in _FIELDS}
    batch = prune(Batch(input_ids=call["input_ids"], **fields), columns, _pad_token_id(model), places)
    made = {"input_ids": batch.input_ids} | {name: getattr(batch, name) for name in _FIELDS}
    if not for_generate:
        # generate would infer a mask from pad tokens in the prompt.
        made["attention_mask"] = needed_mask(batch.attention_mask, batch.position_ids)
    return {name: tensor for name, tensor in made.items() if tensor is not None or call.get(name) is not None}


def _num_left(columns: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
    left = columns >= 0
    if mask is not None:
        left = left & mask.bool().gather(1, columns.clamp_min(0))
    return left.sum(dim=1)


def _pad_token_id(model: Any) -> int:
    configs = (model.config, model.config.get_text_config(), model.generation_config)
    ids = [getattr(config, "pad_token_id", None) for config in configs]
    # Never a placeholder: padding must not ask for image or video features.
    special = {getattr(model.config, name, None) for name in ("image_token_id", "video_token_id")}
    return next(token for token in (*ids, 0, 1, 2) if token is not None and token not in special)
