"""What earlier versions wrote is read as they meant it; `freeze.py` keeps it."""

import importlib
import json
import tomllib
from pathlib import Path
from typing import Any

import pytest
from google.protobuf import descriptor_pool, json_format, message_factory
from google.protobuf.unknown_fields import UnknownFieldSet

from vlmpress.artifact import to_json_bytes, verify
from vlmpress.artifact.v1 import artifact_pb2

ROOT = Path(__file__).resolve().parents[1]
GOLDEN = Path(__file__).parent / "golden"
VERSION = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
AREAS = sorted(GOLDEN.glob("*/messages/*.json"))
ARTIFACTS = sorted(GOLDEN.glob("*/artifacts/*"))
MODULES = [
    importlib.import_module(".".join(path.relative_to(ROOT / "src").with_suffix("").parts))
    for path in sorted((ROOT / "src").rglob("*_pb2.py"))
]


def name_of(path: Path) -> str:
    return path.relative_to(GOLDEN).as_posix()


def entries(path: Path) -> list[dict[str, Any]]:
    return json.loads(path.read_text(encoding="utf-8"))


def class_of(name: str) -> Any:
    return message_factory.GetMessageClass(descriptor_pool.Default().FindMessageTypeByName(name))


def unknown(message: Any) -> list[str]:
    """Where bytes were that this version has no field for."""
    found = [message.DESCRIPTOR.full_name] if len(UnknownFieldSet(message)) else []
    for field, value in message.ListFields():
        kind = field.message_type
        if kind is None:
            continue
        if kind.GetOptions().map_entry:
            inner = list(value.values()) if kind.fields_by_name["value"].message_type else []
        else:
            inner = list(value) if field.is_repeated else [value]
        found += [place for item in inner for place in unknown(item)]
    return found


@pytest.mark.parametrize("path", AREAS, ids=name_of)
def test_every_message_reads_as_it_was_written(path: Path) -> None:
    for entry in entries(path):
        kind = class_of(entry["message"])
        data = bytes.fromhex(entry["bytes"])
        read = kind.FromString(data)
        assert unknown(read) == [], entry["message"]
        assert read == json_format.ParseDict(entry["json"], kind()), entry["message"]
        assert json_format.MessageToDict(read, preserving_proto_field_name=True) == entry["json"]
        assert read.SerializeToString(deterministic=True) == data, entry["message"]


def test_the_test_sees_fields_that_are_gone() -> None:
    log = class_of("vlmpress.artifact.v1.Log").FromString(b"\x7a\x01a")
    assert unknown(artifact_pb2.Manifest(log=log)) == ["vlmpress.artifact.v1.Log"]


@pytest.mark.parametrize("path", ARTIFACTS, ids=name_of)
def test_every_artifact_is_whole_under_its_digest(path: Path) -> None:
    artifact = verify(path)
    assert artifact.manifest.kind == path.name
    assert artifact.manifest.WhichOneof("spec") == path.name
    assert artifact.digest == (path / "manifest.sha256").read_text().strip()
    assert to_json_bytes(artifact.manifest) == (path / "manifest.json").read_bytes()
    assert {file.path: file.size_bytes for file in artifact.manifest.files} == {
        "data.bin": 256,
        "deep/note.txt": len(path.name) + 1,
    }


def test_this_version_is_kept_whole() -> None:
    messages = {name for module in MODULES for name in module.DESCRIPTOR.message_types_by_name}
    kept = {entry["message"] for path in AREAS if name_of(path).startswith(f"{VERSION}/") for entry in entries(path)}
    assert {name.rpartition(".")[2] for name in kept} == messages
    kinds = {field.name for field in artifact_pb2.Manifest.DESCRIPTOR.oneofs_by_name["spec"].fields}
    assert {path.name for path in ARTIFACTS if name_of(path).startswith(f"{VERSION}/")} == kinds
    assert (ROOT / "released" / f"{VERSION}.binpb").is_file()
