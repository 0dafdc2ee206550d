"""Between quantpack's classes and the protobuf messages; the only module that touches them."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from typing import TypeVar

from quantpack.calibration.sites import Method
from quantpack.errors import SchemeError
from quantpack.methods.ecm import Rounding
from quantpack.methods.nearest import Nearest
from quantpack.methods.registry import METHODS
from quantpack.recipe import Embeddings, PartRecipe, Recipe, method_name
from quantpack.report import PartReport
from quantpack.scheme import Axis, Block, Granularity, Scheme
from quantpack.search.options import EcmSearch
from quantpack.selection import PARTS, Part
from quantpack.sweeping import Setting
from quantpack.totals import QuantizedModel
from vlmpress.quantpack.v1 import quantpack_pb2 as pb

_GRANULARITIES: dict[Granularity, pb.Granularity] = {
    "tensor": pb.GRANULARITY_TENSOR,
    "channel": pb.GRANULARITY_CHANNEL,
    "group": pb.GRANULARITY_GROUP,
    "rows": pb.GRANULARITY_ROWS,
    "agq": pb.GRANULARITY_AGQ,
}
_AXES: dict[Axis, pb.Axis] = {"out": pb.AXIS_OUT, "in": pb.AXIS_IN}
_ROUNDINGS: dict[Rounding, pb.Rounding] = {"nearest": pb.ROUNDING_NEAREST, "gptq": pb.ROUNDING_GPTQ}
_EMBEDDINGS: dict[Embeddings, pb.Embeddings] = {"keep": pb.EMBEDDINGS_KEEP, "int4": pb.EMBEDDINGS_INT4}
Name = TypeVar("Name", bound=str)


def scheme_to_proto(scheme: Scheme) -> pb.Scheme:
    """The message of a scheme."""
    return pb.Scheme(
        bits=scheme.bits,
        granularity=_GRANULARITIES[scheme.granularity],
        group_size=scheme.group_size,
        num_rows=scheme.num_rows,
        blocks=[
            pb.Block(share=block.share, group_size=block.group_size, num_channels=block.num_channels)
            for block in scheme.blocks
        ],
        axis=_AXES[scheme.axis],
        symmetric=scheme.symmetric,
    )


def scheme_from_proto(message: pb.Scheme) -> Scheme:
    """The scheme of a message.

    Raises:
        SchemeError: A field that no scheme has, or one that does not fit the granularity.
    """
    granularity = _name(_GRANULARITIES, message.granularity, "scheme: granularity")
    axis = _name(_AXES, message.axis, "scheme: axis", unspecified="out")
    blocks = tuple(
        Block(share=block.share, group_size=block.group_size, num_channels=block.num_channels)
        for block in message.blocks
    )
    scheme = Scheme(
        bits=message.bits,
        granularity=granularity,
        group_size=message.group_size,
        num_rows=message.num_rows,
        blocks=blocks,
        axis=axis,
        symmetric=message.symmetric,
    )
    if (scheme.group_size, scheme.num_rows, scheme.blocks) != (message.group_size, message.num_rows, blocks):
        raise SchemeError(f"scheme: expected only the fields of granularity {scheme.granularity}, got others as well")
    return scheme


def method_to_proto(method: Method) -> pb.Method:
    """The message of a method, every setting filled in; raises SchemeError for one that is not in `METHODS`."""
    message = pb.Method()
    chosen = getattr(message, method_name(method))
    chosen.SetInParent()
    for name, value in asdict(method).items():  # type: ignore[call-overload]
        setattr(chosen, name, _ROUNDINGS[value] if name == "rounding" else value)
    return message


def method_from_proto(message: pb.Method) -> Method:
    """The method of a message; settings that it leaves out are the defaults.

    Raises:
        SchemeError: It names no method, or a setting is out of range.
    """
    kind = message.WhichOneof("method")
    if kind is None:
        raise SchemeError(f"method: expected one of {', '.join(METHODS)}, got none")
    settings = {field.name: value for field, value in getattr(message, kind).ListFields()}
    make: Callable[..., Method] = METHODS[kind]
    with _at(f"method {kind}"):
        if kind == "ecm":
            settings["rounding"] = _name(_ROUNDINGS, message.ecm.rounding, "rounding", unspecified="nearest")
        return make(**settings)


def recipe_to_proto(recipe: Recipe) -> pb.Recipe:
    """The message of a recipe."""
    parts = {part: _choice_to_proto(choice) for part, choice in recipe.parts.items()}
    return pb.Recipe(
        default=_part_recipe_to_proto(recipe.default),
        vision=parts.get("vision"),
        language=parts.get("language"),
        other=parts.get("other"),
        embeddings=_EMBEDDINGS[recipe.embeddings],
        tensors={name: scheme_to_proto(scheme) for name, scheme in recipe.tensors.items()},
    )


def recipe_from_proto(message: pb.Recipe) -> Recipe:
    """The recipe of a message.

    Raises:
        SchemeError: It has no default, or names the part or weight whose scheme or method does not exist.
    """
    parts: dict[Part, PartRecipe | None] = {}
    with _at("recipe"):
        if not message.HasField("default"):
            raise SchemeError("expected a default, got none")
        with _at("default"):
            default = _part_recipe_from_proto(message.default)
        for part in PARTS:
            if message.HasField(part):
                with _at(part):
                    parts[part] = _choice_from_proto(getattr(message, part))
        tensors = {}
        for name in sorted(message.tensors):
            with _at(f"tensor {name!r:.80}"):
                tensors[name] = scheme_from_proto(message.tensors[name])
        embeddings = _name(_EMBEDDINGS, message.embeddings, "embeddings", unspecified="keep")
        return Recipe(default=default, parts=parts, tensors=tensors, embeddings=embeddings)


def ecm_search_to_proto(search: EcmSearch) -> pb.EcmSearch:
    """The message of a search, every field filled in."""
    return pb.EcmSearch(
        max_accuracy_drop=search.max_drop,
        bits=search.bits,
        group_size=search.group_size,
        axis=pb.AXIS_UNSPECIFIED if search.axis is None else _AXES[search.axis],
        rounding=_ROUNDINGS[search.rounding],
    )


def ecm_search_from_proto(message: pb.EcmSearch) -> EcmSearch:
    """The search of a message.

    Raises:
        SchemeError: A field is out of range.
    """
    defaults = EcmSearch()
    return EcmSearch(
        max_drop=message.max_accuracy_drop,
        bits=message.bits or defaults.bits,
        group_size=message.group_size or defaults.group_size,
        axis=_name(_AXES, message.axis, "search: axis") if message.axis else None,
        rounding=_name(_ROUNDINGS, message.rounding, "search: rounding", unspecified="nearest"),
    )


def setting_to_proto(setting: Setting) -> pb.SweepSetting:
    """The message of one setting of a sweep."""
    return pb.SweepSetting(name=setting.name, kind=setting.kind, recipe=recipe_to_proto(setting.recipe))


def setting_from_proto(message: pb.SweepSetting) -> Setting:
    """The setting of a message.

    Raises:
        SchemeError: It has no name, or no such recipe exists; names the setting.
    """
    if not message.name:
        raise SchemeError("setting: expected a name, got an empty string")
    with _at(f"setting {message.name!r:.80}"):
        recipe = recipe_from_proto(message.recipe)
    return Setting(name=message.name, kind=message.kind or message.name, recipe=recipe)


def quantized_model_to_proto(model: QuantizedModel) -> pb.QuantizedModel:
    """The message of a pack's totals."""
    return pb.QuantizedModel(
        scheme=scheme_to_proto(model.scheme),
        num_codes=model.num_codes,
        code_bytes_packed=model.code_bytes_packed,
        code_bytes_compressed=model.code_bytes_compressed,
        recipe=None if model.recipe is None else recipe_to_proto(model.recipe),
    )


def quantized_model_from_proto(message: pb.QuantizedModel) -> QuantizedModel:
    """The totals of a message; raises SchemeError."""
    return QuantizedModel(
        scheme=scheme_from_proto(message.scheme),
        num_codes=message.num_codes,
        code_bytes_packed=message.code_bytes_packed,
        code_bytes_compressed=message.code_bytes_compressed,
        recipe=recipe_from_proto(message.recipe) if message.HasField("recipe") else None,
    )


def part_report_to_proto(report: PartReport) -> pb.PartReport:
    """The message of a part's figures."""
    return pb.PartReport(
        part=report.part,
        num_weights=report.num_weights,
        code_bytes_packed=report.code_bytes_packed,
        code_bytes_compressed=report.code_bytes_compressed,
        cr_codes=report.cr_codes,
        entropy_bits_per_code=report.entropy_bits_per_code,
        bits_per_weight=report.bits_per_weight,
        bytes_on_disk=report.bytes_on_disk,
    )


def part_report_from_proto(message: pb.PartReport) -> PartReport:
    """The figures of a message."""
    return PartReport(
        part=message.part,
        num_weights=message.num_weights,
        code_bytes_packed=message.code_bytes_packed,
        code_bytes_compressed=message.code_bytes_compressed,
        cr_codes=message.cr_codes,
        entropy_bits_per_code=message.entropy_bits_per_code,
        bits_per_weight=message.bits_per_weight,
        bytes_on_disk=message.bytes_on_disk,
    )


def _part_recipe_to_proto(recipe: PartRecipe) -> pb.PartRecipe:
    return pb.PartRecipe(scheme=scheme_to_proto(recipe.scheme), method=method_to_proto(recipe.method))


def _part_recipe_from_proto(message: pb.PartRecipe) -> PartRecipe:
    scheme = scheme_from_proto(message.scheme)
    return PartRecipe(
        scheme=scheme, method=method_from_proto(message.method) if message.HasField("method") else Nearest()
    )


def _choice_to_proto(choice: PartRecipe | None) -> pb.PartChoice:
    if choice is None:
        return pb.PartChoice(keep=pb.Keep())
    return pb.PartChoice(recipe=_part_recipe_to_proto(choice))


def _choice_from_proto(message: pb.PartChoice) -> PartRecipe | None:
    kind = message.WhichOneof("choice")
    if kind is None:
        raise SchemeError("expected recipe or keep, got neither")
    return None if kind == "keep" else _part_recipe_from_proto(message.recipe)


def _name(values: Mapping[Name, int], value: int, where: str, unspecified: Name | None = None) -> Name:
    """The name of an enum's value; 0 gives `unspecified` where there is one."""
    if value == 0 and unspecified is not None:
        return unspecified
    for name, each in values.items():
        if each == value:
            return name
    raise SchemeError(f"{where}: expected one of {', '.join(values)}, got {value}")


@contextmanager
def _at(place: str) -> Iterator[None]:
    """Puts a place before the message of an error."""
    try:
        yield
    except SchemeError as error:
        raise SchemeError(f"{place}: {error}") from error
