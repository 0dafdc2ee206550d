"""Where each tensor of a pack goes in a model, decided from names and shapes alone."""

import re
from collections.abc import Iterable, Mapping
from copy import deepcopy
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn
from transformers.core_model_loading import (
    WeightConverter,
    WeightRenaming,
    WeightTransform,
    dot_natural_key,
    rename_source_key,
)

from quantpack.container.index import Entry, Index
from quantpack.errors import ModelMismatchError

if TYPE_CHECKING:
    # Half a second to import, and packing has no use for it.
    from transformers import PreTrainedModel


@dataclass(frozen=True, kw_only=True, slots=True)
class Placement:
    """A parameter or buffer of the model, and what of the pack makes it.

    Attributes:
        target: Its name in the model.
        sources: Names in the pack, each with the pattern of the conversion that takes it.
        conversion: What makes one of the other; None where the tensor is taken as it is.
    """

    target: str
    sources: list[tuple[str, str]] = field(default_factory=list)
    conversion: WeightConverter | None = None


def entries_by_name(index: Index) -> dict[str, Entry]:
    """What is stored under each name of a pack, aliases included."""
    stored = {entry.name: entry for entry in (*index.quantized, *index.kept)}
    return stored | {alias: stored[name] for alias, name in index.aliases.items()}


def place(
    index: Index, model: "PreTrainedModel", conversions: Iterable[WeightTransform], where: str
) -> list[Placement]:
    """The placements that fill the model.

    Names go through the model's own conversions, as those of any checkpoint do. Tensors that the model has
    no place for are left out when it is not of the class that was packed (a tower, a model without head).

    Args:
        index: Of the pack.
        model: On the meta device.
        conversions: What transformers applies to the model's checkpoints.
        where: The pack, for errors.

    Raises:
        ModelMismatchError: A tensor is missing, unexpected or of the wrong shape; names it.
    """
    state = model.state_dict()
    entries = entries_by_name(index)
    placements, unused = _assign(entries, state, model.base_model_prefix, conversions)
    if type(model).__name__ in (model.config.architectures or ()):
        unexpected = _without(unused, _ignored_unexpected(model))
        if unexpected:
            raise ModelMismatchError(f"{where}: expected the tensors of the model, got unexpected keys: {unexpected}")
    for placement in placements.values():
        if placement.conversion is None:
            check_shape(placement.target, entries[placement.sources[0][0]].shape, state[placement.target], where)
    missing = _missing(placements, state, model)
    if missing:
        raise ModelMismatchError(f"{where}: expected the tensors of {type(model).__name__}, missing keys: {missing}")
    tied = model.all_tied_weights_keys
    return [found for found in placements.values() if not _repeats(found, placements, entries, tied)]


def check_shape(target: str, shape: Iterable[int], expected: Tensor, where: str) -> None:
    """Raises ModelMismatchError unless the shape is that of the model's tensor."""
    if tuple(shape) != tuple(expected.shape):
        raise ModelMismatchError(
            f"{where}: expected the model's tensors, got {target} of shape {list(shape)}, not {list(expected.shape)}"
        )


def module_of(model: nn.Module, placement: Placement) -> nn.Module | None:
    """The module whose weight the pack has as it is, without any conversion."""
    path, _, name = placement.target.rpartition(".")
    return model.get_submodule(path) if placement.conversion is None and name == "weight" else None


def _assign(
    entries: Mapping[str, Entry], state: dict[str, Tensor], prefix: str, conversions: Iterable[WeightTransform]
) -> tuple[dict[str, Placement], list[str]]:
    """Placements by target, and the names that have none."""
    conversions = list(conversions)
    renamings = [transform for transform in conversions if isinstance(transform, WeightRenaming)]
    converters = [transform for transform in conversions if isinstance(transform, WeightConverter)]
    by_pattern = {pattern: converter for converter in converters for pattern in converter.source_patterns}
    placements: dict[str, Placement] = {}
    unused: list[str] = []
    # In the order transformers merges tensors: layers.2 before layers.10.
    for name in sorted(entries, key=dot_natural_key):
        target, pattern = rename_source_key(name, renamings, converters, prefix, state)
        if target not in state and name in state:
            target, pattern = rename_source_key(name, [], [], prefix, state)
        if target not in state:
            unused.append(name)
        elif pattern is None:
            placements[target] = Placement(target=target, sources=[(name, name)])
        else:
            found = placements.setdefault(target, Placement(target=target, conversion=deepcopy(by_pattern[pattern])))
            found.sources.append((name, pattern))
    return placements, unused


def _missing(placements: Mapping[str, Placement], state: Mapping[str, Tensor], model: "PreTrainedModel") -> str:
    filled = set(placements)
    for placement in placements.values():
        if placement.conversion is not None:
            # One tensor may become several, named alike.
            first, *others = placement.conversion.target_patterns
            filled |= {placement.target.replace(first, other) for other in others}
    tied: Mapping[str, str] = model.all_tied_weights_keys
    for one, other in tied.items():
        if one in filled or other in filled:
            filled |= {one, other}
    return _without((key for key in state if key not in filled), model._keys_to_ignore_on_load_missing or ())


def _repeats(placement: Placement, by_target: Mapping[str, Placement], entries: Mapping[str, Entry], tied: Any) -> bool:
    """True where the model ties this tensor to another that the pack holds once for both."""
    other = by_target.get(tied.get(placement.target, ""))
    if other is None or placement.conversion is not None or other.conversion is not None:
        return False
    return entries[placement.sources[0][0]] is entries[other.sources[0][0]]


def _ignored_unexpected(model: "PreTrainedModel") -> list[str]:
    patterns = list(model._keys_to_ignore_on_load_unexpected or ())
    # Buffers that checkpoints of older releases hold, as transformers itself forgives them.
    buffers = [name for name, _ in model.named_buffers()]
    if any(name.endswith("rotary_emb.inv_freq") for name in buffers):
        patterns.append(r"rotary_emb\.inv_freq")
    if any(name.endswith("position_ids") for name in buffers):
        patterns.append(r"(^|\.)position_ids$")
    return patterns


def _without(names: Iterable[str], ignored: Iterable[str]) -> str:
    """The first names that no pattern matches, for a message."""
    patterns = [re.compile(pattern) for pattern in ignored]
    return ", ".join(sorted(name for name in names if not any(pattern.search(name) for pattern in patterns))[:3])
