"""Generates the Python code of the contracts; the only way it is ever produced.

`python protos/generate.py` rewrites the committed code; `--check` regenerates into an empty
folder, compares both ways and exits 1 when anything differs. Needs grpcio-tools as pinned in
tox.ini, whose environments `protos` and `generate` run it.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent
OUT = ROOT / "src"
SUFFIXES = ("_pb2.py", "_pb2.pyi", "_pb2_grpc.py")


def sources() -> list[str]:
    """Paths of all proto files relative to the proto root, sorted."""
    return sorted(path.relative_to(ROOT).as_posix() for path in (ROOT / "vlmpress").rglob("*.proto"))


def generate(out: Path) -> None:
    """Writes the code of every source below `out`."""
    command = [
        sys.executable,
        "-m",
        "grpc_tools.protoc",
        f"--proto_path={ROOT}",
        f"--python_out={out}",
        f"--pyi_out={out}",
    ]
    subprocess.run([*command, *sources()], check=True)
    with_service = [name for name in sources() if "\nservice " in (ROOT / name).read_text(encoding="utf-8")]
    subprocess.run([*command, f"--grpc_python_out={out}", *with_service], check=True)


def generated(folder: Path) -> dict[str, bytes]:
    """Content of every generated file below `folder` by relative path."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.name.endswith(SUFFIXES)
    }


def check() -> list[str]:
    """One line for each difference between the committed code and freshly generated code."""
    with tempfile.TemporaryDirectory() as folder:
        generate(Path(folder))
        fresh = generated(Path(folder))
    committed = generated(OUT)
    faults = [f"{name}: generated but not committed" for name in fresh.keys() - committed.keys()]
    faults += [f"{name}: committed but no longer generated" for name in committed.keys() - fresh.keys()]
    faults += [f"{name}: differs" for name in fresh.keys() & committed.keys() if fresh[name] != committed[name]]
    return sorted(faults)


def rewrite() -> None:
    """Replaces the committed code by fresh code."""
    with tempfile.TemporaryDirectory() as folder:
        generate(Path(folder))
        for name in generated(OUT):
            (OUT / name).unlink()
        for name in generated(Path(folder)):
            (OUT / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(Path(folder) / name, OUT / name)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="compare instead of writing")
    if not parser.parse_args().check:
        rewrite()
        return 0
    faults = check()
    for fault in faults:
        print(f"proto drift: {fault}; run python -m tox run -e generate", file=sys.stderr)
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
