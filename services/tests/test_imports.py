"""What the server's own modules import; the rules of the whole repository are tested with the contracts."""

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


def test_a_server_module_pulls_in_no_package() -> None:
    script = (
        "import sys, vlmpress_services.serving.server, vlmpress_services.cli, vlmpress_services.job_service\n"
        f"heavy = {{*{PACKAGES!r}, 'torch', 'transformers', 'ray'}} & set(sys.modules)\n"
        "sys.exit(', '.join(sorted(heavy)) or 0)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("package", PACKAGES)
def test_a_service_needs_its_package_alone(package: str) -> None:
    assert roots(imported(SERVICES / f"{package}_service.py")) & {*PACKAGES} == {package}
