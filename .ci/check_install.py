"""Proves that one package stands alone: run by tox in an environment that holds it and the contracts.

`check_install.py PACKAGE`: the package and its command work, and nothing of the others is there. For
quantpack it packs, verifies and unpacks a file of generated weights.
"""

import importlib
import importlib.util
import json
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path

PACKAGES = ("quantpack", "tokenreduce", "stagetrain", "verbdistill", "edgevlm")


def command(*arguments: str) -> str:
    """Standard output of an installed command; its failure ends the check."""
    program, *rest = arguments
    path = Path(sysconfig.get_path("scripts")) / program
    print("$", *arguments, flush=True)
    return subprocess.run([path, *rest], check=True, stdout=subprocess.PIPE, text=True).stdout


def check_alone(package: str) -> None:
    """The package imports, its command explains itself, and no other part of vlmpress came with it."""
    module = importlib.import_module(package)
    missing = [name for name in module.__all__ if not hasattr(module, name)]
    if not module.__all__ or missing:
        sys.exit(f"{package}: expected a public surface, missing {missing or 'all of it'}")
    others = {*PACKAGES, "vlmpress_services", "grpc", "ray"} - {package}
    present = sorted(name for name in others if importlib.util.find_spec(name))
    if present:
        sys.exit(f"{package}: expected it alone, found {', '.join(present)}")
    if package not in command(package, "--help"):
        sys.exit(f"{package} --help: expected its own name")


def check_quantpack(folder: Path) -> None:
    """Packs and unpacks generated weights; every value comes back within one step of its group's scale."""
    import torch
    from safetensors.torch import load_file, save_file

    generator = torch.Generator().manual_seed(0)
    weights = {
        "wide.weight": torch.randn(96, 300, generator=generator),
        "tall.weight": 0.02 * torch.randn(515, 64, generator=generator),
        "tall.bias": torch.randn(515, generator=generator),
    }
    source, pack, back = folder / "weights.safetensors", folder / "pack", folder / "back.safetensors"
    save_file(weights, source)
    command("quantpack", "pack", str(source), str(pack))
    command("quantpack", "verify", str(pack))
    json.loads(command("quantpack", "inspect", str(pack), "--json"))
    command("quantpack", "unpack", str(pack), str(back))
    restored = load_file(back)
    if restored.keys() != weights.keys():
        sys.exit(f"unpack: expected {sorted(weights)}, got {sorted(restored)}")
    for name, weight in weights.items():
        step = (weight.max() - weight.min()) / 15 if weight.dim() == 2 else torch.tensor(0.0)
        error = (restored[name].float() - weight).abs().max()
        if restored[name].shape != weight.shape or error > step:
            sys.exit(f"unpack: {name}: expected errors up to {step:.4g}, got {error:.4g}")
        print(f"{name}: largest error {error:.4g}, one step of the whole tensor {step:.4g}")


def main() -> None:
    (package,) = sys.argv[1:]
    check_alone(package)
    if package == "quantpack":
        with tempfile.TemporaryDirectory() as folder:
            check_quantpack(Path(folder))
    print(f"{package} stands alone")


if __name__ == "__main__":
    main()
