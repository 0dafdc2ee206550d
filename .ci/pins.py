"""Keeps constraints.txt equal to what is installed.

`pins.py` fails when a distribution of the running environment is not pinned, or pinned at another version;
`pins.py --write` makes the running environment's versions the new list. tox runs both: the first in the
environments `type` and `tests`, the second in `pins`, which installs the newest versions allowed.
"""

import argparse
import re
import sys
from importlib.metadata import Distribution, distributions
from pathlib import Path

FILE = Path(__file__).resolve().parents[1] / "constraints.txt"
HEADER = """\
# The versions that tests, checks and demo install; every command passes this file to pip.
# Written by `python -m tox run -e pins`; CONTRIBUTING.md says how to move a version.
"""
# pip brings itself; torch's accelerator builds pin what they bring.
EXEMPT = re.compile(r"vlmpress-.*|pip|setuptools|wheel|triton|nvidia-.*|cuda-.*")


def installed() -> dict[str, str]:
    """Versions of this environment by normalised name, the workspace's own distributions left out."""
    found = {_name(distribution): distribution.version.split("+")[0] for distribution in distributions()}
    return {name: version for name, version in sorted(found.items()) if not EXEMPT.fullmatch(name)}


def pinned() -> dict[str, str]:
    """Versions of constraints.txt by normalised name."""
    lines = [line for line in FILE.read_text(encoding="utf-8").splitlines() if line and not line.startswith("#")]
    return dict(line.split("==", 1) for line in lines)


def faults() -> list[str]:
    """One line for each distribution that is not as pinned."""
    pins = pinned()
    return [
        f"{name}: constraints.txt says {pins.get(name, 'nothing')}, installed is {version}"
        for name, version in installed().items()
        if pins.get(name) != version
    ]


def _name(distribution: Distribution) -> str:
    return re.sub(r"[-_.]+", "-", distribution.name).lower()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--write", action="store_true", help="write the list instead of checking it")
    if parser.parse_args().write:
        FILE.write_text(HEADER + "".join(f"{n}=={v}\n" for n, v in installed().items()), encoding="utf-8")
        return 0
    lines = faults()
    for line in lines:
        print(f"pins: {line}", file=sys.stderr)
    return 1 if lines else 0


if __name__ == "__main__":
    sys.exit(main())
