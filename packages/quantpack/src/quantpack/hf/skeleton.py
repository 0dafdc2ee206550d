"""Which weights of a pack are linear layers of its model: asked of the model's class, without any weights."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import nn
from transformers import AutoConfig
from transformers.conversion_mapping import get_model_conversion_mapping

from quantpack.container.index import Entry, Index
from quantpack.hf.placing import Placement, entries_by_name, module_of, place
from quantpack.models import model_class
from vlmpress.artifact import import_model_code

if TYPE_CHECKING:
    # Half a second to import, and packing has no use for it.
    from transformers import PreTrainedModel


@dataclass(frozen=True, kw_only=True, slots=True)
class LinearLayers:
    """The linear layers of a packed model.

    Attributes:
        packed: The layer in the model, by the pack's name of its weight, where codes can take the weight's place.
        unpacked: Names of all other linear layers, as the model and as the pack calls them.
        entries: What the pack stores under each name.
    """

    packed: Mapping[str, str]
    unpacked: list[str]
    entries: Mapping[str, Entry]


def linear_layers(directory: Path, index: Index) -> LinearLayers:
    """The linear layers of the model that a pack's config describes.

    Raises:
        ModelMismatchError: The pack's tensors are not the model's.
    """
    model = _skeleton(directory)
    entries = entries_by_name(index)
    placements = place(index, model, get_model_conversion_mapping(model), str(directory))
    tied = {*model.all_tied_weights_keys, *model.all_tied_weights_keys.values()}
    packed = {
        placement.sources[0][0]: placement.target.removesuffix(".weight")
        for placement in placements
        if entries[placement.sources[0][0]].scheme is not None
        # Not a subclass: nn.MultiheadAttention reads the weight of its own. A tied weight is a table as well.
        and type(module_of(model, placement)) is nn.Linear
        and placement.target not in tied
    }
    named = _names(placements)
    taken = set(packed.values())
    rest = [name for name, layer in model.named_modules() if isinstance(layer, nn.Linear) and name not in taken]
    unpacked = {alias for name in rest for alias in (name, named.get(name, name))}
    return LinearLayers(packed=packed, unpacked=sorted(unpacked), entries=entries)


def _skeleton(directory: Path) -> "PreTrainedModel":
    import_model_code(directory)
    config = AutoConfig.from_pretrained(directory, local_files_only=True)
    del config.quantization_config
    with torch.device("meta"):
        model: PreTrainedModel = model_class(config, directory)(config)
    return model


def _names(placements: list[Placement]) -> dict[str, str]:
    """What the pack calls each layer of the model."""
    return {
        placement.target.removesuffix(".weight"): placement.sources[0][0].removesuffix(".weight")
        for placement in placements
    }
