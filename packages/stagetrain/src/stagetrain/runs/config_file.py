"""YAML with the place of every value, so that an error can name file and line."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib.resources import files
from pathlib import Path
from typing import Any

import yaml

from stagetrain.errors import ConfigError

KeyPath = tuple[str | int, ...]
PRESETS = "presets"


@dataclass(frozen=True, slots=True)
class Places:
    """Where values stand.

    Attributes:
        root: Name of the file.
        known: "FILE:LINE" or the override of every key path.
    """

    root: str
    known: dict[KeyPath, str] = field(default_factory=dict)

    def of(self, path: KeyPath) -> str:
        """Place of a key path, or of the nearest one above it."""
        for length in range(len(path), -1, -1):
            if path[:length] in self.known:
                return self.known[path[:length]]
        return self.root

    def error(self, path: KeyPath, message: str) -> ConfigError:
        """An error about the value at `path`."""
        name = ".".join(map(str, path))
        return ConfigError(f"{self.of(path)}: {name + ': ' if name else ''}{message}")


def preset_names() -> tuple[str, ...]:
    """Names of the configurations that come with the package."""
    folder = files("stagetrain.runs") / PRESETS
    return tuple(sorted(each.name.removesuffix(".yaml") for each in folder.iterdir() if each.name.endswith(".yaml")))


def read_settings(source: str, overrides: Sequence[str] = ()) -> tuple[dict[str, Any], Places]:
    """Values of a YAML file or a preset, with `key=value` overrides, and their places.

    Args:
        source: Path of a file, or the name of a preset.
        overrides: Dotted key, "=" and a YAML value each; a number in the key is a place in a list.

    Raises:
        ConfigError: Names the file and line, or the override.
    """
    name, text = _read(source)
    places = Places(name)
    try:
        node = yaml.compose(text, Loader=yaml.SafeLoader)
    except (yaml.YAMLError, RecursionError) as error:
        mark = getattr(error, "problem_mark", None)
        where = name if mark is None else f"{name}:{mark.line + 1}"
        raise ConfigError(f"{where}: expected YAML, got {getattr(error, 'problem', None) or error}") from error
    values = {} if node is None else _value(node, (), places)
    if not isinstance(values, dict):
        raise places.error((), f"expected a mapping, got {_shown(values)}")
    for override in overrides:
        _override(values, override, places)
    return values, places


def _read(source: str) -> tuple[str, str]:
    if source in preset_names():
        return f"preset {source}", (files("stagetrain.runs") / PRESETS / f"{source}.yaml").read_text(encoding="utf-8")
    path = Path(source)
    if path.suffix not in (".yaml", ".yml"):
        raise ConfigError(f"{source}: expected a .yaml file or one of the presets {', '.join(preset_names())}")
    try:
        return source, path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{source}: expected a readable YAML file, got {error}") from error


def _value(node: yaml.Node, path: KeyPath, places: Places) -> Any:
    places.known[path] = f"{places.root}:{node.start_mark.line + 1}"
    if isinstance(node, yaml.SequenceNode):
        return [_value(each, (*path, index), places) for index, each in enumerate(node.value)]
    if not isinstance(node, yaml.MappingNode):
        return _scalar(node)
    values: dict[str, Any] = {}
    for key_node, value_node in node.value:
        key = _scalar(key_node)
        own = (*path, str(key))
        # The line of the key says more than that of a list below it.
        line = f"{places.root}:{key_node.start_mark.line + 1}"
        if not isinstance(key, str):
            raise ConfigError(f"{line}: expected a name, got {_shown(key)}")
        if key in values:
            raise ConfigError(f"{line}: {key}: expected a key once, got it again")
        values[key] = _value(value_node, own, places)
        places.known[own] = line
    return values


def _scalar(node: yaml.Node) -> Any:
    loader = yaml.SafeLoader("")
    try:
        return loader.construct_object(node, deep=True)
    finally:
        loader.dispose()


def _override(values: dict[str, Any], override: str, places: Places) -> None:
    where = f"override {override!r}"
    dotted, sign, text = override.partition("=")
    keys = dotted.split(".")
    if not sign or not all(keys):
        raise ConfigError(f"{where}: expected key=value")
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ConfigError(f"{where}: expected a YAML value, got {text!r}") from error
    path: KeyPath = ()
    holder: Any = values
    for depth, key in enumerate(keys):
        place: Any = int(key) if isinstance(holder, list) and key.isdigit() else key
        if isinstance(holder, list) and not (isinstance(place, int) and place < len(holder)):
            raise ConfigError(f"{where}: expected a number below {len(holder)} in place of {key!r}")
        if not isinstance(holder, dict | list):
            raise ConfigError(f"{where}: expected a mapping at {'.'.join(map(str, path))}, got {_shown(holder)}")
        path = (*path, place)
        if depth < len(keys) - 1:
            holder = holder.setdefault(place, {}) if isinstance(holder, dict) else holder[place]
            continue
        holder[place] = value
        for known in [each for each in places.known if each[: len(path)] == path]:
            del places.known[known]
        places.known[path] = where


def _shown(value: object) -> str:
    return repr(value) if len(repr(value)) <= 80 else f"{type(value).__name__}"
