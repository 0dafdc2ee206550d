"""Names in a checkpoint's files against names in the model that transformers builds from it.

transformers renames while it loads (old LLaVA files say `language_model.model.layers`, the model says
`model.language_model.layers`), and for some models merges tensors (experts). Renaming is followed here;
a merged tensor has no codes of its own and is refused.
"""

from collections.abc import Callable, Iterable, Mapping

from torch import Tensor
from transformers import PreTrainedModel
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import WeightConverter, WeightRenaming, rename_source_key

from quantpack.errors import CalibrationError


def parameter_names(model: PreTrainedModel, names: Iterable[str]) -> dict[str, str]:
    """The parameter or buffer that each tensor of a checkpoint becomes; those the model has no place for are left out.

    Args:
        model: May be on the meta device.
        names: As the files have them.

    Raises:
        CalibrationError: transformers merges or splits a tensor, or gives two of them one name.
    """
    places = model.state_dict()
    transforms = get_model_conversion_mapping(model)
    renamings = [each for each in transforms if isinstance(each, WeightRenaming)]
    converters = [each for each in transforms if isinstance(each, WeightConverter)]
    prefix = model.base_model_prefix
    found: dict[str, str] = {}
    owners: dict[str, str] = {}
    for name in names:
        renamed, converter = rename_source_key(name, renamings, converters, prefix, places)
        if renamed not in places and name in places:
            renamed, converter = name, None
        if renamed not in places:
            continue
        if converter is not None:
            raise CalibrationError(
                f"{name}: expected a tensor that only gets a new name, got one merged into {renamed}"
            )
        if renamed in owners:
            raise CalibrationError(f"{renamed}: expected one tensor to become it, got {owners[renamed]} and {name}")
        found[name], owners[renamed] = renamed, name
    return found


def parameter_reader(
    model: PreTrainedModel, names: Iterable[str], read: Callable[[str], Tensor]
) -> Callable[[str], Tensor]:
    """Reads by the model's names what `read` reads by the file's; a tied parameter under whichever name is there.

    Args:
        model: May be on the meta device.
        names: As the files have them.
        read: One tensor by such a name.

    Raises:
        CalibrationError: As `parameter_names`, or a parameter that is in no file; names it.
    """
    files = {place: name for name, place in parameter_names(model, names).items()}
    for tied in tied_names(model).values():
        source = next((files[name] for name in tied if name in files), None)
        if source is None:
            raise CalibrationError(f"{tied[0]}: expected a tensor for each parameter, found none for it")
        for name in tied:
            files.setdefault(name, source)
    return lambda name: read(files[name])


def tied_names(model: PreTrainedModel) -> Mapping[str, tuple[str, ...]]:
    """All names of each parameter, by its first; the same object under several names is tied."""
    groups: dict[int, list[str]] = {}
    for name, param in model.named_parameters(remove_duplicate=False):
        groups.setdefault(id(param), []).append(name)
    return {names[0]: tuple(names) for names in groups.values()}
