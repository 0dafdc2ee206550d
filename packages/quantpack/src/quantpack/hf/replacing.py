"""Modules whose weight stays packed, in place of a model's ordinary ones, and back."""

from collections.abc import Collection
from typing import TYPE_CHECKING

import torch
from torch import nn

from quantpack.container.index import Entry, Index
from quantpack.hf.embedding import PackedEmbedding
from quantpack.hf.linear import PackedLinear, TiedLinear
from quantpack.hf.placing import Placement, entries_by_name, module_of
from quantpack.hf.storage import PackedWeight

if TYPE_CHECKING:
    # Half a second to import, and packing has no use for it.
    from transformers import PreTrainedModel


def pack_modules(model: "PreTrainedModel", placements: Collection[Placement], index: Index) -> set[str]:
    """Puts modules that compute with codes where the pack has codes; returns the names of their weights.

    Linear layers, and embeddings with the heads that are tied to them. Other quantized weights have no such
    module, and are to be dequantized.

    Args:
        model: On the meta device.
        placements: Of the pack's tensors.
        index: Of the pack.
    """
    entries = entries_by_name(index)
    targets = {placement.target for placement in placements}
    packed = set()
    for placement in placements:
        entry, module = entries[placement.sources[0][0]], module_of(model, placement)
        if entry.scheme is None:
            continue
        with torch.device("meta"):
            # Not subclasses: nn.MultiheadAttention, for one, reads the weight of its own past the layer.
            if type(module) is nn.Linear and not _ties(model, placement.target):
                _set(model, placement.target, _packed_linear(module, entry))
                packed.add(placement.target)
            elif type(module) is nn.Embedding and _pack_table(model, placement.target, module, entry, targets):
                packed.add(placement.target)
    _skip_initialization(model)
    return packed


def unpack_modules(model: "PreTrainedModel", dtype: torch.dtype | None) -> None:
    """Puts ordinary modules back, their weights in `dtype` or else in the model's."""
    modules = dict(model.named_modules())
    names = {id(module): name for name, module in modules.items()}
    for name, module in modules.items():
        if isinstance(module, PackedLinear):
            _set(model, f"{name}.weight", _plain_linear(module, module.dequantized(dtype or module.like.dtype)))
        elif isinstance(module, PackedEmbedding):
            weight = nn.Parameter(module.dequantized(dtype or module.like.dtype))
            plain = nn.Embedding(*module.shape, padding_idx=module.padding_idx, device="meta")
            plain.weight = weight
            _set(model, f"{name}.weight", plain.train(module.training))
    for name, module in modules.items():
        if isinstance(module, TiedLinear):
            table = f"{names[id(module.table)]}.weight"
            _set(model, f"{name}.weight", _plain_linear(module, model.get_parameter(table)))
            model.all_tied_weights_keys[f"{name}.weight"] = table


def _ties(model: "PreTrainedModel", weight: str) -> list[str]:
    """Other weights that are this one, taken from it or given to it."""
    return [other for pair in model.all_tied_weights_keys.items() for one, other in (pair, pair[::-1]) if one == weight]


def _pack_table(model: "PreTrainedModel", weight: str, table: nn.Embedding, entry: Entry, targets: set[str]) -> bool:
    """Packs an embedding and the heads tied to it, if nothing else is."""
    tied = _ties(model, weight)
    heads = [_linear_of(model, other) for other in tied]
    if table.max_norm is not None or None in heads or not targets.isdisjoint(tied):
        return False
    packed = _packed_embedding(table, entry)
    _set(model, weight, packed)
    for other, head in zip(tied, heads, strict=True):
        assert head is not None
        _set(model, other, TiedLinear(packed, head.bias))
        # There is no parameter left that transformers could tie.
        del model.all_tied_weights_keys[other]
    return True


def _linear_of(model: nn.Module, weight: str) -> nn.Linear | None:
    path, _, name = weight.rpartition(".")
    module = model.get_submodule(path)
    return module if name == "weight" and type(module) is nn.Linear else None


def _packed_linear(layer: nn.Linear, entry: Entry) -> PackedLinear:
    assert entry.scheme is not None
    return PackedLinear(
        (layer.out_features, layer.in_features),
        entry.scheme,
        scale_dtype=entry.dtype,
        bias=layer.bias is not None,
        dtype=layer.weight.dtype,
    )


def _packed_embedding(table: nn.Embedding, entry: Entry) -> PackedEmbedding:
    assert entry.scheme is not None
    return PackedEmbedding(
        (table.num_embeddings, table.embedding_dim),
        entry.scheme,
        scale_dtype=entry.dtype,
        padding_idx=table.padding_idx,
        dtype=table.weight.dtype,
    )


def _plain_linear(layer: PackedLinear | TiedLinear, weight: torch.Tensor) -> nn.Linear:
    plain = nn.Linear(layer.in_features, layer.out_features, bias=layer.bias is not None, device="meta")
    plain.weight = weight if isinstance(weight, nn.Parameter) else nn.Parameter(weight)
    plain.register_parameter("bias", layer.bias)
    return plain.train(layer.training)


def _skip_initialization(model: nn.Module) -> None:
    """Keeps models from drawing random weights for packed modules, which would dequantize each of them for nothing."""
    for module in model.modules():
        holds_packed = any(isinstance(child, PackedWeight | TiedLinear) for child in module.children())
        # Buffers that no checkpoint holds are made by the initialization.
        if holds_packed and not module._non_persistent_buffers_set:
            setattr(module, "_is_hf_initialized", True)  # noqa: B010 - transformers' flag, no attribute of nn.Module


def _set(model: nn.Module, weight: str, module: nn.Module) -> None:
    """Puts a module in the place of the one with this weight."""
    parent, _, name = weight.removesuffix(".weight").rpartition(".")
    setattr(model.get_submodule(parent), name, module)
