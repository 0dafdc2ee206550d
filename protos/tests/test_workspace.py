"""The rules that keep the packages apart, checked on every file of the repository."""

import ast
import re
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("quantpack", "tokenreduce", "stagetrain", "verbdistill", "edgevlm")
PROJECTS = ["protos", *(f"packages/{package}" for package in PACKAGES), "services"]

pytestmark = pytest.mark.skipif(not (ROOT / "packages").is_dir(), reason="not in the repository")


def imports(path: Path) -> Iterator[str]:
    """Every module a file imports, anywhere in it; `import_module("x")` with a literal counts too."""
    for node in ast.walk(ast.parse(path.read_bytes(), str(path))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith(("import_module", "importorskip")):
            yield from (part.value for part in node.args[:1] if isinstance(part, ast.Constant))


def breaches(folder: Path, *banned: str) -> list[str]:
    """One line for each import of a banned top-level module below `folder`."""
    return [
        f"{path.relative_to(ROOT)}: {name}"
        for path in sorted(folder.rglob("*.py"))
        for name in imports(path)
        if name.split(".")[0] in banned
    ]


@pytest.mark.parametrize("package", PACKAGES)
def test_a_package_imports_no_other_no_grpc_and_no_ray(package: str) -> None:
    others = [other for other in PACKAGES if other != package]
    assert breaches(ROOT / "packages" / package, *others, "vlmpress_services", "grpc", "ray") == []


@pytest.mark.parametrize("package", PACKAGES)
def test_only_wire_touches_generated_code(package: str) -> None:
    found = [
        f"{path.relative_to(ROOT)}: {name}"
        for path in sorted((ROOT / "packages" / package / "src").rglob("*.py"))
        for name in imports(path)
        if "_pb2" in name and path.name != "wire.py"
    ]
    assert found == []


def test_the_contracts_import_no_package_and_no_framework() -> None:
    banned = (*PACKAGES, "vlmpress_services", "torch", "transformers", "ray")
    assert breaches(ROOT / "protos" / "src", *banned) == []
    assert all("_pb2_grpc.py" in line for line in breaches(ROOT / "protos" / "src", "grpc"))


def test_ray_is_reached_only_through_the_workers() -> None:
    source = ROOT / "services" / "src" / "vlmpress_services"
    assert [line for line in breaches(source, "ray") if "/workers/" not in line] == []


@pytest.mark.parametrize("project", PROJECTS)
def test_every_distribution_is_complete(project: str) -> None:
    folder = ROOT / project
    assert all((folder / name).is_file() for name in ("README.md", "CHANGELOG.md", "pyproject.toml"))
    assert len(list((folder / "src").glob("*/py.typed"))) == 1
    metadata = tomllib.loads((folder / "pyproject.toml").read_text())["project"]
    assert metadata["license"] == "Apache-2.0"
    assert metadata["requires-python"] == ">=3.11"
    assert f"## {metadata['version']}" in (folder / "CHANGELOG.md").read_text()


@pytest.mark.parametrize("project", PROJECTS)
def test_every_dependency_is_pinned(project: str) -> None:
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pins = {line.split("==")[0] for line in lines if not line.startswith("#")}
    metadata = tomllib.loads((ROOT / project / "pyproject.toml").read_text())
    extras = metadata["project"].get("optional-dependencies", {}).values()
    asked = [
        *metadata["build-system"]["requires"],
        *metadata["project"]["dependencies"],
        *(r for e in extras for r in e),
    ]
    names = {re.sub(r"[-_.]+", "-", re.split(r"[^\w.-]", requirement)[0]).lower() for requirement in asked}
    assert {name for name in names if not name.startswith("vlmpress-")} <= pins


def test_pins_are_exact_and_name_no_build() -> None:
    lines = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if not line.startswith("#")]
    assert "torch==2.13.0" in lines
    assert [line for line in lines if not re.fullmatch(r"[a-z0-9-]+==[0-9][0-9a-z.]*", line)] == []
    assert lines == sorted(lines, key=lambda line: line.split("==")[0])


def test_no_module_is_a_drawer_for_anything() -> None:
    drawers = {"utils", "util", "helpers", "helper", "common", "misc"}
    sources = [path for project in PROJECTS for path in (ROOT / project / "src").rglob("*.py")]
    assert [
        path for path in sources if path.stem in drawers or drawers & set(path.parent.parts[len(ROOT.parts) :])
    ] == []


def test_no_source_file_is_over_300_lines() -> None:
    sources = [path for project in PROJECTS for path in (ROOT / project / "src").rglob("*.py")]
    own = [path for path in sources if "_pb2" not in path.name]
    assert [str(path.relative_to(ROOT)) for path in own if len(path.read_text().splitlines()) > 300] == []
