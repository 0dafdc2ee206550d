"""Configuration of a sweep: the main job's, and what is varied."""

import itertools
from collections.abc import Mapping
from dataclasses import field
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import ConfigDict, Field, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass

from vlmpress.cli import UserError
from vlmpress_services.pipeline.config import RunConfig, config_of
from vlmpress_services.pipeline.models import VARIANTS

MAX_VARIANTS = 256
FIXED = ("out", "runner")
_STRICT = ConfigDict(extra="forbid")


@dataclass(frozen=True, kw_only=True, slots=True, config=_STRICT)
class ParetoConfig:
    """What a sweep varies.

    Attributes:
        base: The main job's configuration, as mappings; what it leaves out is as in the demo.
        axes: Values by field, named as its path in `base`: `{edge.fusion: [none, cross], reduction.tau: [0.5, 0.6]}`.
        combine: "each": the base, and it with one field changed; "all": every combination.
        measure: Models of each variant that are measured. One that a change does not reach is made and measured once.
        cpus_per_worker: Cores of each variant's worker on Ray; those of shards stand in `base.evaluation`.
        gpus_per_worker: GPUs of each variant's worker, or a share of one.
    """

    base: dict[str, Any] = field(default_factory=dict)
    axes: dict[str, Annotated[list[Any], Field(min_length=1)]]
    combine: Literal["each", "all"] = "each"
    measure: Annotated[tuple[Literal[VARIANTS], ...], Field(min_length=1)] = ("edge_packed",)  # type: ignore[valid-type]
    cpus_per_worker: Annotated[float, Field(ge=0)] = 1
    gpus_per_worker: Annotated[float, Field(ge=0)] = 0


@dataclass(frozen=True, slots=True)
class Variant:
    """One run of the sweep: what differs from the base, and its whole configuration."""

    changes: dict[str, Any]
    config: RunConfig

    @property
    def name(self) -> str:
        """Its changes in one line; "base" without any."""
        return ", ".join(f"{path} {_short(value)}" for path, value in self.changes.items()) or "base"


_ADAPTER = TypeAdapter(ParetoConfig)


def parse_pareto(text: str, place: str) -> ParetoConfig:
    """Reads YAML; `place` names it in errors.

    Raises:
        UserError: Names the field, what was expected and what came.
    """
    try:
        fields: Any = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise UserError(f"{place}: expected YAML, got {error}") from error
    try:
        return _ADAPTER.validate_python(fields)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "top level"
        raise UserError(f"{place}: {where}: {first['msg']}, got {first['input']!r}") from error


def read_pareto(path: Path) -> ParetoConfig:
    """As `parse_pareto`, from a file."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: expected a readable YAML file, got {error}") from error
    return parse_pareto(text, str(path))


def variants_of(config: ParetoConfig, place: str) -> list[Variant]:
    """The runs of a sweep, each configuration once, all of them checked.

    Raises:
        UserError: A field of an axis does not exist, a value cannot be right, or there are too many runs.
    """
    paths = list(config.axes)
    if config.combine == "all":
        changes = [dict(zip(paths, values, strict=True)) for values in itertools.product(*config.axes.values())]
    else:
        changes = [{}, *({path: value} for path in paths for value in config.axes[path])]
    if len(changes) > MAX_VARIANTS:
        raise UserError(f"{place}: axes: expected at most {MAX_VARIANTS} variants, got {len(changes)}")
    for path in paths:
        if path.partition(".")[0] in FIXED:
            raise UserError(f"{place}: axes: {path}: expected a field that models depend on")
    found: list[Variant] = []
    for change in changes:
        fields = config.base
        for path, value in change.items():
            fields = _with(fields, path.split("."), value)
        variant = Variant(change, config_of(fields, f"{place}: {change or 'base'}"))
        if all(variant.config != other.config for other in found):
            found.append(variant)
    return found


def _with(fields: Mapping[str, Any], path: list[str], value: Any) -> dict[str, Any]:
    """A copy in which the field at a path has a value."""
    name, *rest = path
    inner = fields.get(name)
    if rest:
        value = _with(inner if isinstance(inner, Mapping) else {}, rest, value)
    return {**fields, name: value}


def _short(value: Any) -> str:
    text = (
        yaml.safe_dump(value, default_flow_style=True, width=1 << 16, sort_keys=False)
        .removesuffix("\n")
        .removesuffix("\n...")
    )
    return text if len(text) <= 60 else f"{text[:57]}..."
