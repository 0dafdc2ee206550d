"""Where a server's configuration comes from: flags over environment over file over defaults."""

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, fields, is_dataclass
from pathlib import Path
from typing import Any, get_args, get_type_hints

import yaml
from pydantic import TypeAdapter, ValidationError

from vlmpress_services.errors import InvalidRequestError
from vlmpress_services.serving.configuration import ServerConfig
from vlmpress_services.serving.registry import parse_services
from vlmpress_services.store.commands import DEFAULT_STORE

PREFIX = "VLMPRESS_"
# Values with a structure of their own are YAML in the environment; all others are taken as they stand.
_STRUCTURED = ("methods",)
_ADAPTER = TypeAdapter(ServerConfig)
_CREDENTIALS = re.compile(r"://[^/@\s]*@")


@dataclass(frozen=True, slots=True)
class Source:
    """Fields from one place, which names itself in errors."""

    place: str
    fields: Mapping[str, Any]


def load_config(
    flags: Mapping[str, Any], file: Path | None = None, environment: Mapping[str, str] | None = None
) -> ServerConfig:
    """The configuration of a server.

    Args:
        flags: What the command line says, nested as in a file.
        file: YAML with fields of `ServerConfig`.
        environment: VLMPRESS_<FIELD>, parts of nested fields joined by two underscores; by default the process's own.

    Raises:
        InvalidRequestError: Names the place, the field, what was expected and what came.
        ExtraMissingError: A service's package is not installed.
    """
    sources = [
        Source("flags", flags),
        Source("environment", _from_environment(os.environ if environment is None else environment)),
        Source(str(file), {} if file is None else _from_file(file)),
    ]
    merged: Any = _ADAPTER.dump_python(_defaults()) | {"services": "all"}
    for source in reversed(sources):
        merged = _merged(merged, source.fields)
    try:
        merged["services"] = _services(merged["services"])
        return _ADAPTER.validate_python(merged)
    except InvalidRequestError as error:
        raise InvalidRequestError(f"{_place(sources, ('services',))}: {error}") from error
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        text = first["msg"].removeprefix("Value error, ")
        got = "" if first["type"] == "value_error" else f", got {first['input']!r}"
        place = _place(sources, first["loc"] or tuple(text.partition(":")[0].split(".")))
        raise InvalidRequestError(": ".join(part for part in (place, where, text) if part) + got) from error


def shown(config: ServerConfig) -> str:
    """The configuration as YAML, without the credentials that an address may hold."""
    text: str = yaml.safe_dump(_ADAPTER.dump_python(config, mode="json"), sort_keys=False)
    return _CREDENTIALS.sub("://***@", text)


def _defaults() -> ServerConfig:
    return ServerConfig(store=DEFAULT_STORE, services=("artifact",))


def _from_file(file: Path) -> Mapping[str, Any]:
    try:
        given = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidRequestError(f"{file}: expected a readable YAML file, got {error}") from error
    except yaml.YAMLError as error:
        raise InvalidRequestError(f"{file}: expected YAML, got {error}") from error
    if given is None:
        return {}
    if not isinstance(given, dict):
        raise InvalidRequestError(f"{file}: expected fields of a server's configuration, got {type(given).__name__}")
    return given


def _from_environment(environment: Mapping[str, str]) -> dict[str, Any]:
    """Fields by the variables that are set; an empty one counts as unset, other VLMPRESS_ variables are not ours."""
    found: dict[str, Any] = {}
    for path in _leaves(ServerConfig):
        value = environment.get(variable_of(path), "")
        if not value:
            continue
        level = found
        for part in path[:-1]:
            level = level.setdefault(part, {})
        level[path[-1]] = _structured(path, value) if path[-1] in _STRUCTURED else value
    return found


def variable_of(path: tuple[str, ...]) -> str:
    """The environment variable of a field, for example VLMPRESS_TLS__CERT."""
    return PREFIX + "__".join(path).upper()


def _structured(path: tuple[str, ...], value: str) -> Any:
    try:
        return yaml.safe_load(value)
    except yaml.YAMLError as error:
        raise InvalidRequestError(f"{variable_of(path)}: expected YAML, got {value!r}") from error


def _leaves(kind: type) -> list[tuple[str, ...]]:
    """Paths of the fields that hold values, through the nested classes."""
    hints = get_type_hints(kind)
    found: list[tuple[str, ...]] = []
    for field in fields(kind):
        parts: tuple[Any, ...] = (hints[field.name], *get_args(hints[field.name]))
        nested = [part for part in parts if isinstance(part, type) and is_dataclass(part)]
        if field.name in _STRUCTURED or not nested:
            found.append((field.name,))
        else:
            found += [(field.name, *path) for path in _leaves(nested[0])]
    return found


def _services(given: Any) -> tuple[str, ...]:
    return parse_services(",".join(map(str, given)) if isinstance(given, list | tuple) else str(given))


def _place(sources: list[Source], path: tuple[str | int, ...]) -> str:
    """Which source the value at `path`, or its innermost part that was given, comes from."""
    for length in range(len(path), 0, -1):
        for source in sources:
            value: Any = source.fields
            for part in path[:length]:
                value = value.get(part) if isinstance(value, Mapping) else None
            if value is not None:
                return source.place
    return ""


def _merged(base: Any, given: Any) -> Any:
    """`given` over `base`, mapping by mapping; what does not fit is left for the check to name."""
    if not isinstance(base, Mapping) or not isinstance(given, Mapping):
        return given
    return {**base, **{name: _merged(base.get(name), value) for name, value in given.items()}}
