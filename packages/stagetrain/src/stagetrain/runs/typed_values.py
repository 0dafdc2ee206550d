"""Values of a configuration as the types that dataclasses and functions ask for."""

import types
from dataclasses import MISSING, fields, is_dataclass
from enum import Enum
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from stagetrain.runs.config_file import KeyPath, Places


def read_dataclass(kind: type[Any], value: Any, path: KeyPath, places: Places) -> Any:
    """A dataclass of the mapping at `path`.

    Raises:
        ConfigError: A key is unknown or missing, or a value of another type; names its place and the accepted keys.
    """
    hints = get_type_hints(kind)
    known = {each.name: each for each in fields(kind) if each.init and each.metadata.get("key", True)}
    values = read_mapping(value, {name: hints[name] for name in known}, path, places)
    for name, each in known.items():
        if name not in values and each.default is MISSING and each.default_factory is MISSING:
            raise places.error(path, f"expected the key {name}, got {', '.join(values) or 'none'}")
    return kind(**values)


def read_mapping(value: Any, hints: dict[str, Any], path: KeyPath, places: Places) -> dict[str, Any]:
    """The mapping at `path`, its values of the types that `hints` says by key.

    Raises:
        ConfigError: A key is unknown, or a value of another type.
    """
    if not isinstance(value, dict):
        raise places.error(path, f"expected a mapping of {', '.join(hints)}, got {value!r}")
    for name in value:
        if name not in hints:
            raise places.error((*path, name), f"expected one of {', '.join(hints)}, got the key {name!r}")
    return {name: read_value(hints[name], each, (*path, name), places) for name, each in value.items()}


def read_value(hint: Any, value: Any, path: KeyPath, places: Places) -> Any:
    """`value` as the type `hint`.

    Raises:
        ConfigError: It is of another type.
    """
    if is_dataclass(hint) and isinstance(hint, type):
        return read_dataclass(hint, value, path, places)
    if get_origin(hint) in (Union, types.UnionType):
        options = get_args(hint)
        if value is None and type(None) in options:
            return None
        for option in options:
            if isinstance(option, type) and is_dataclass(option) and isinstance(value, dict):
                return read_dataclass(option, value, path, places)
        for option in options:
            converted = _simple(option, value)
            if converted is not _NO:
                return converted
    else:
        converted = _simple(hint, value)
        if converted is not _NO:
            return converted
    raise places.error(path, f"expected {_named(hint)}, got {value!r}")


_NO = object()


def _simple(hint: Any, value: Any) -> Any:
    """`value` as a type without keys, or _NO."""
    if hint is Any:
        return value
    if get_origin(hint) is Literal:
        return value if value in get_args(hint) else _NO
    if get_origin(hint) is tuple:
        inner = get_args(hint)[0]
        parts = [_simple(inner, each) for each in value] if isinstance(value, list) else [_NO]
        return _NO if any(part is _NO for part in parts) else tuple(parts)
    kind = get_origin(hint) or hint
    if not isinstance(kind, type):
        return _NO
    if kind is float:
        return _float(value)
    if kind is int:
        return value if isinstance(value, int) and not isinstance(value, bool) else _NO
    if kind is Path:
        return Path(value) if isinstance(value, str) and value else _NO
    if issubclass(kind, Enum):
        return value if isinstance(value, str) else _NO
    return value if isinstance(value, kind) else _NO


def _float(value: Any) -> Any:
    if isinstance(value, int | float) and not isinstance(value, bool):
        return float(value)
    if isinstance(value, str):
        # YAML 1.1 takes 2e-5, which has no point, for text.
        try:
            return float(value)
        except ValueError:
            return _NO
    return _NO


def _named(hint: Any) -> str:
    if get_origin(hint) in (Union, types.UnionType):
        return " or ".join(_named(option) for option in get_args(hint))
    if get_origin(hint) is Literal:
        return " or ".join(map(repr, get_args(hint)))
    if get_origin(hint) is tuple:
        return f"a list of {_named(get_args(hint)[0])}"
    names = {str: "text", int: "a whole number", float: "a number", bool: "true or false", Path: "a path"}
    names |= {type(None): "null", dict: "a mapping", list: "a list"}
    return names.get(get_origin(hint) or hint, getattr(hint, "__name__", str(hint)))
