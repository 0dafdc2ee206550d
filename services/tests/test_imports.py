"""Who may import whom; see ARCHITECTURE, rules 1, 4 and 8."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("quantpack", "tokenreduce", "stagetrain", "verbdistill", "edgevlm")
SERVICES = ROOT / "services" / "src" / "vlmpress_services"


def imported(path: Path) -> set[str]:
    """Full names of the modules a file imports anywhere, those inside functions and strings of import_module too."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module is not None:
            names |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
        elif isinstance(node, ast.Call) and getattr(node.func, "attr", "") in ("import_module", "importorskip"):
            names |= {str(argument.value) for argument in node.args if isinstance(argument, ast.Constant)}
    return names


def roots(names: set[str]) -> set[str]:
    return {name.partition(".")[0] for name in names}


def files_of(folder: Path) -> list[Path]:
    return [path for path in sorted(folder.rglob("*.py")) if "build" not in path.relative_to(folder).parts]


@pytest.mark.parametrize("package", PACKAGES)
def test_a_package_knows_no_other_package_nor_the_network(package: str) -> None:
    forbidden = ({*PACKAGES} - {package}) | {"grpc", "ray", "vlmpress_services"}
    files = files_of(ROOT / "packages" / package)
    assert files
    for path in files:
        found = roots(imported(path)) & forbidden
        assert not found, f"{path.relative_to(ROOT)} imports {', '.join(sorted(found))}"


@pytest.mark.parametrize("package", PACKAGES)
def test_only_wire_touches_generated_code(package: str) -> None:
    for path in files_of(ROOT / "packages" / package / "src"):
        if path.name == "wire.py":
            continue
        found = {name for name in imported(path) if any(part.endswith("_pb2") for part in name.split("."))}
        assert not found, f"{path.relative_to(ROOT)} imports {', '.join(sorted(found))}"


def test_the_contracts_know_nobody() -> None:
    for path in files_of(ROOT / "protos" / "src"):
        allowed = {"grpc"} if path.name.endswith("_pb2_grpc.py") else set()
        found = roots(imported(path)) & ({*PACKAGES, "vlmpress_services", "grpc", "ray", "torch"} - allowed)
        assert not found, f"{path.relative_to(ROOT)} imports {', '.join(sorted(found))}"


def test_only_workers_import_ray() -> None:
    for path in files_of(SERVICES):
        if "workers" not in path.relative_to(SERVICES).parts:
            assert "ray" not in roots(imported(path)), path.relative_to(ROOT)


def test_a_server_module_pulls_in_no_package() -> None:
    script = (
        "import sys, vlmpress_services.server, vlmpress_services.cli, vlmpress_services.job_service\n"
        f"heavy = {{*{PACKAGES!r}, 'torch', 'transformers', 'ray'}} & set(sys.modules)\n"
        "sys.exit(', '.join(sorted(heavy)) or 0)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("package", PACKAGES)
def test_a_service_needs_its_package_alone(package: str) -> None:
    # What the package and the server's own modules import in turn, the tests above say.
    assert roots(imported(SERVICES / f"{package}_service.py")) & {*PACKAGES} == {package}
