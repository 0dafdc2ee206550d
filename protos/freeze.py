"""Freezes the contracts of a version: what later versions have to read, and what they are compared with.

`python protos/freeze.py` writes, for the version in pyproject.toml,

- `released/<version>.binpb`: the contracts as buf sees them, for `buf breaking`;
- `tests/golden/<version>/messages/<area>.json`: every message with every field set, as bytes and as JSON, and once more
  for each alternative of a oneof;
- `tests/golden/<version>/artifacts/<kind>`: an artifact of every kind.

What is frozen stays so: `--again` is for a version that is not released yet. `--check` fails where a change breaks what
any frozen version says. Needs buf; tox runs the first in `freeze`, the other in `protos`.
"""

from __future__ import annotations

import argparse
import importlib
import json
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent
sys.path.insert(0, str(ROOT / "src"))

from google.protobuf import json_format, message_factory  # noqa: E402
from google.protobuf.descriptor import Descriptor, FieldDescriptor  # noqa: E402
from google.protobuf.message import Message  # noqa: E402

from vlmpress.artifact import create  # noqa: E402
from vlmpress.artifact.v1 import artifact_pb2  # noqa: E402

# Below it messages stay empty, so that none is told out at every place it is used in.
MAX_DEPTH = 3
INTEGERS = {
    FieldDescriptor.TYPE_UINT32: 2**32,
    FieldDescriptor.TYPE_FIXED32: 2**32,
    FieldDescriptor.TYPE_UINT64: 2**64,
    FieldDescriptor.TYPE_FIXED64: 2**64,
    FieldDescriptor.TYPE_INT32: 2**31,
    FieldDescriptor.TYPE_INT64: 2**63,
}
"""One more than the largest value of a type."""


def version() -> str:
    """The version of this distribution."""
    return str(tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["version"])


def areas() -> dict[str, list[Descriptor]]:
    """The messages of each folder of contracts, nested ones left out."""
    found: dict[str, list[Descriptor]] = {}
    for path in sorted((ROOT / "vlmpress").rglob("*.proto")):
        relative = path.relative_to(ROOT)
        module = importlib.import_module(".".join(relative.with_name(f"{path.stem}_pb2").parts))
        found.setdefault(relative.parts[1], []).extend(module.DESCRIPTOR.message_types_by_name.values())
    return found


def filled(descriptor: Descriptor, alternative: int = 0, depth: int = 0) -> Any:
    """A message with every field set; of a oneof the field with this index, or its last one."""
    message = message_factory.GetMessageClass(descriptor)()
    if descriptor.file.package == "google.protobuf":
        # Times and durations; JSON refuses the extremes.
        message.seconds, message.nanos = 5, 250_000_000
        return message
    unwanted = {
        field.name
        for oneof in descriptor.oneofs
        for field in oneof.fields
        if field is not oneof.fields[min(alternative, len(oneof.fields) - 1)]
    }
    for field in descriptor.fields:
        if field.name not in unwanted:
            fill(message, field, depth)
    return message


def fill(message: Message, field: FieldDescriptor, depth: int) -> None:
    """Sets one field, a list or a map with one entry."""
    kind = field.message_type
    if kind is not None and kind.GetOptions().map_entry:
        value = kind.fields_by_name["value"]
        entries = getattr(message, field.name)
        if value.message_type is None:
            entries["key"] = scalar(value)
        else:
            entries["key"].CopyFrom(inner(value, depth))
    elif kind is None:
        value = scalar(field)
        getattr(message, field.name).append(value) if field.is_repeated else setattr(message, field.name, value)
    elif field.is_repeated:
        getattr(message, field.name).append(inner(field, depth))
    else:
        getattr(message, field.name).CopyFrom(inner(field, depth))


def inner(field: FieldDescriptor, depth: int) -> Any:
    """The message of a field."""
    if depth < MAX_DEPTH:
        return filled(field.message_type, depth=depth + 1)
    return message_factory.GetMessageClass(field.message_type)()


def scalar(field: FieldDescriptor) -> Any:
    """A value that tells the field's type and number."""
    if field.enum_type is not None:
        return field.enum_type.values[-1].number
    if field.type in INTEGERS:
        return INTEGERS[field.type] - field.number
    values = {
        FieldDescriptor.TYPE_STRING: f"größe {field.number}",
        FieldDescriptor.TYPE_BYTES: bytes([0, 255, field.number]),
        FieldDescriptor.TYPE_BOOL: True,
        FieldDescriptor.TYPE_DOUBLE: field.number + 0.1,
        FieldDescriptor.TYPE_FLOAT: field.number + 0.5,
    }
    return values[field.type]


def variants(descriptor: Descriptor) -> Iterator[dict[str, Any]]:
    """One entry for each alternative of the message's largest oneof; one where it has none."""
    for alternative in range(max((len(oneof.fields) for oneof in descriptor.oneofs), default=1)):
        message = filled(descriptor, alternative)
        yield {
            "message": descriptor.full_name,
            "bytes": message.SerializeToString(deterministic=True).hex(),
            "json": json_format.MessageToDict(message, preserving_proto_field_name=True),
        }


def write_messages(folder: Path) -> None:
    """One file for each area."""
    folder.mkdir(parents=True)
    for area, descriptors in areas().items():
        entries = [entry for descriptor in descriptors for entry in variants(descriptor)]
        text = json.dumps(entries, indent=1, ensure_ascii=False)
        (folder / f"{area}.json").write_text(f"{text}\n", encoding="utf-8")


def write_artifacts(folder: Path) -> None:
    """One artifact for each kind, with every field of its specification."""
    folder.mkdir(parents=True)
    for field in artifact_pb2.Manifest.DESCRIPTOR.oneofs_by_name["spec"].fields:
        with create(folder / field.name) as draft:
            (draft.path / "deep").mkdir()
            (draft.path / "deep" / "note.txt").write_text(f"{field.name}\n", encoding="utf-8")
            (draft.path / "data.bin").write_bytes(bytes(range(256)))
            draft.commit(
                filled(field.message_type),
                producer=("vlmpress-contracts", version()),
                parents=[("model", "f" * 64)],
                metrics={"seconds": 0.25},
            )


def breaks() -> bool:
    """Whether the contracts break any frozen version; buf says how."""
    images = sorted((ROOT / "released").glob("*.binpb"))
    return any(subprocess.run(["buf", "breaking", str(ROOT), "--against", str(image)]).returncode for image in images)


def freeze() -> None:
    """Writes what this version has to keep."""
    shutil.rmtree(golden(), ignore_errors=True)
    write_messages(golden() / "messages")
    write_artifacts(golden() / "artifacts")
    image().parent.mkdir(exist_ok=True)
    subprocess.run(["buf", "build", str(ROOT), "--exclude-source-info", "-o", str(image())], check=True)


def golden() -> Path:
    """The folder of this version's messages and artifacts."""
    return ROOT / "tests" / "golden" / version()


def image() -> Path:
    """The file of this version's contracts."""
    return ROOT / "released" / f"{version()}.binpb"


def main() -> None:
    parser = argparse.ArgumentParser(description="Freezes the contracts of the version in pyproject.toml.")
    parser.add_argument("--again", action="store_true", help="replace what was frozen; never after a release")
    parser.add_argument("--check", action="store_true", help="only compare the contracts with every frozen version")
    arguments = parser.parse_args()
    if arguments.check:
        sys.exit(breaks())
    if not arguments.again and (image().exists() or golden().exists()):
        sys.exit(f"{version()}: expected a version that is not frozen yet; --again replaces one that is not released")
    freeze()


if __name__ == "__main__":
    main()
