"""The committed code imports, and the gate that keeps it equal to its sources works."""

import importlib
import importlib.util
import shutil
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parents[1]
MESSAGES = sorted(path.relative_to(ROOT / "src") for path in (ROOT / "src").rglob("*_pb2.py"))
SERVICES = sorted(path.relative_to(ROOT / "src") for path in (ROOT / "src").rglob("*_pb2_grpc.py"))


def module_of(path: Path) -> ModuleType:
    return importlib.import_module(".".join(path.with_suffix("").parts))


@pytest.mark.parametrize("path", MESSAGES, ids=str)
def test_messages_import_where_their_proto_package_says(path: Path) -> None:
    descriptor = module_of(path).DESCRIPTOR
    assert descriptor.package == ".".join(path.parent.parts)
    assert descriptor.name == path.as_posix().replace("_pb2.py", ".proto")
    assert (ROOT / descriptor.name).is_file()


@pytest.mark.parametrize("path", SERVICES, ids=str)
def test_services_import(path: Path) -> None:
    pytest.importorskip("grpc", reason="the extra [grpc] is not installed")
    assert any(name.endswith("Stub") for name in vars(module_of(path)))


def test_every_source_has_its_code() -> None:
    sources = sorted(path.relative_to(ROOT).with_suffix("") for path in (ROOT / "vlmpress").rglob("*.proto"))
    assert [path.with_name(path.name.removesuffix("_pb2.py")) for path in MESSAGES] == sources
    assert all(path.with_name(path.name.replace("_pb2_grpc.py", "_pb2.py")) in MESSAGES for path in SERVICES)


def test_enums_start_unspecified() -> None:
    for path in MESSAGES:
        for name, enum in module_of(path).DESCRIPTOR.enum_types_by_name.items():
            assert enum.values_by_number[0].name.endswith("_UNSPECIFIED"), name


@pytest.fixture
def gate(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """`generate.py` over a copy of the committed code, with that code in place of the compiler's."""
    specification = importlib.util.spec_from_file_location("generate", ROOT / "generate.py")
    assert specification is not None
    assert specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    shutil.copytree(ROOT / "src", tmp_path / "src")
    monkeypatch.setattr(module, "OUT", tmp_path / "src")
    monkeypatch.setattr(module, "generate", lambda out: shutil.copytree(ROOT / "src", out, dirs_exist_ok=True))
    return module


def change(path: Path) -> None:
    path.write_bytes(path.read_bytes() + b"\n")


def add(path: Path) -> None:
    path.with_name("more_pb2.py").touch()


@pytest.mark.parametrize(
    ("harm", "fault"),
    [
        (change, "artifact_pb2.py: differs"),
        (Path.unlink, "artifact_pb2.py: generated but not committed"),
        (add, "more_pb2.py: committed but no longer generated"),
    ],
)
def test_the_gate_sees_a_difference_in_both_directions(
    gate: ModuleType, harm: Callable[[Path], None], fault: str
) -> None:
    assert gate.check() == []
    harm(gate.OUT / "vlmpress" / "artifact" / "v1" / "artifact_pb2.py")
    assert gate.check() == [f"vlmpress/artifact/v1/{fault}"]
    gate.rewrite()
    assert gate.check() == []
