"""Measured cells in a JSON file: written as soon as they are known, measured once."""

import fcntl
import json
import os
import time
from collections.abc import Callable, Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

VERSION = version("vlmpress-tokenreduce")
Fields = dict[str, str]


class Cells:
    """Results by key; a key is tokenreduce's version, a section, and the configuration as name=value.

    Args:
        path: The file; read when it is there. Several processes may share it, each with cells of its own.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._values: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}

    def measure(self, section: str, make: Callable[..., dict[str, Any]], *args: object, **fields: object) -> None:
        """Makes, times and writes the cell's value where the file lacks it."""
        if self._key(section, fields) not in self._values:
            self.record(section, make, *args, **fields)

    def record(self, section: str, make: Callable[..., dict[str, Any]], *args: object, **fields: object) -> None:
        """Makes, times and writes the cell's value."""
        key = self._key(section, fields)
        begin = time.perf_counter()
        value = make(*args)
        self._values[key] = _rounded({**value, "seconds": round(time.perf_counter() - begin, 1)})
        self._write()
        print(f"{key}: {json.dumps(self._values[key])[:200]}", flush=True)

    @staticmethod
    def _key(section: str, fields: dict[str, object]) -> str:
        return " ".join([VERSION, section, *(f"{name}={value}" for name, value in fields.items())])

    def of(self, section: str, **wanted: object) -> Iterator[tuple[Fields, dict[str, Any]]]:
        """(configuration, value) of this version's cells of a section, those that have these values."""
        for key, value in self._values.items():
            at_version, at_section, *pairs = key.split(" ")
            fields = dict(pair.split("=", 1) for pair in pairs)
            if (at_version, at_section) == (VERSION, section) and all(
                fields.get(name) == str(each) for name, each in wanted.items()
            ):
                yield fields, value

    def _write(self) -> None:
        folder = os.open(self._path.parent, os.O_RDONLY)
        try:
            # The folder stands for the file, which is replaced; the lock goes with the descriptor.
            fcntl.flock(folder, fcntl.LOCK_EX)
            if self._path.exists():
                self._values = json.loads(self._path.read_text(encoding="utf-8")) | self._values
            self._replace()
        finally:
            os.close(folder)

    def _replace(self) -> None:
        lines = [
            f"{json.dumps(key)}: {json.dumps(value, separators=(',', ':'))}" for key, value in self._values.items()
        ]
        draft = self._path.with_name(f"{self._path.name}.{os.getpid()}.tmp")
        draft.write_text("{\n" + ",\n".join(lines) + "\n}\n", encoding="utf-8")
        draft.replace(self._path)


def _rounded(value: Any) -> Any:
    if isinstance(value, float):
        return float(f"{value:.6g}")
    if isinstance(value, dict):
        return {name: _rounded(each) for name, each in value.items()}
    if isinstance(value, list | tuple):
        return [_rounded(each) for each in value]
    return value
