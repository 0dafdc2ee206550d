"""Measured cells in a JSON file: written as soon as they are known, measured once."""

import fcntl
import json
import os
from collections.abc import Callable, Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

VERSION = version("vlmpress-edgevlm")
Row = dict[str, Any]


class Cells:
    """Results by key: edgevlm's version, a section, and the configuration as name=value.

    Args:
        path: The file; read when it is there. Several processes may share it, each with cells of its own.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._values: dict[str, Row] = {}
        self._read()

    def measure(self, section: str, make: Callable[[], Row], **fields: object) -> Row:
        """The cell's value; made and written where the file lacks it."""
        found = self._values.get(_key(section, fields))
        return self.record(section, make, **fields) if found is None else found

    def record(self, section: str, make: Callable[[], Row], **fields: object) -> Row:
        """The cell's value, made and written whether the file has one or not."""
        key = _key(section, fields)
        self._values[key] = _rounded(make())
        self._write()
        print(f"{key}: {json.dumps(self._values[key])[:300]}", flush=True)
        return self._values[key]

    def of(self, section: str, **wanted: object) -> Iterator[tuple[dict[str, str], Row]]:
        """(configuration, value) of this version's cells of a section, those that have these values."""
        for key, value in self._values.items():
            at_version, at_section, *pairs = key.split(" ")
            fields = dict(pair.split("=", 1) for pair in pairs)
            if (at_version, at_section) == (VERSION, section) and all(
                fields.get(name) == str(each) for name, each in wanted.items()
            ):
                yield fields, value

    def _read(self) -> None:
        if self._path.exists():
            self._values = json.loads(self._path.read_text(encoding="utf-8")) | self._values

    def _write(self) -> None:
        folder = os.open(self._path.resolve().parent, os.O_RDONLY)
        try:
            # The folder stands for the file, which is replaced; the lock goes with the descriptor.
            fcntl.flock(folder, fcntl.LOCK_EX)
            self._read()
            lines = (
                f"{json.dumps(key)}: {json.dumps(value, separators=(',', ':'))}" for key, value in self._values.items()
            )
            draft = self._path.with_name(f"{self._path.name}.{os.getpid()}.tmp")
            draft.write_text("{\n" + ",\n".join(lines) + "\n}\n", encoding="utf-8")
            draft.replace(self._path)
        finally:
            os.close(folder)


def _key(section: str, fields: dict[str, object]) -> str:
    return " ".join([VERSION, section, *(f"{name}={value}" for name, value in fields.items())])


def _rounded(value: Any) -> Any:
    if isinstance(value, float):
        return float(f"{value:.6g}")
    if isinstance(value, dict):
        return {name: _rounded(each) for name, each in value.items()}
    if isinstance(value, list | tuple):
        return [_rounded(each) for each in value]
    return value
