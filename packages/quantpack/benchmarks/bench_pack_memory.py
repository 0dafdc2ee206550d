"""Time and peak memory of packing a model directory, each scheme in a process of its own; prints JSON.

    python benchmarks/make_qwen_shape.py MODEL
    python benchmarks/bench_pack_memory.py MODEL [--granularities group agq] [--embeddings keep int4]

Peak memory is the largest resident size of the process, imports and mapped pages of the source included. The limit is
twice the largest tensor at two bytes a weight, and a gigabyte.
"""

import argparse
import json
import math
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from quantpack import inspect
from quantpack.source import open_source

PACK = "import sys; from quantpack.cli import main; sys.exit(main())"


def measure(model: Path, granularity: str, embeddings: str, folder: Path) -> dict[str, Any]:
    out = folder / f"{granularity}-{embeddings}"
    options = ["--granularity", granularity, "--embeddings", embeddings]
    start = time.perf_counter()
    child = os.posix_spawn(
        sys.executable,
        [sys.executable, "-c", PACK, "pack", str(model), str(out), *options],
        os.environ,
        file_actions=[(os.POSIX_SPAWN_OPEN, number, os.devnull, os.O_WRONLY, 0) for number in (1, 2)],
    )
    _, status, used = os.wait4(child, 0)
    wall_s = time.perf_counter() - start
    if status:
        raise SystemExit(f"pack {' '.join(options)} failed")
    total = inspect(out)[-1]
    return {
        "granularity": granularity,
        "embeddings": embeddings,
        "wall_s": round(wall_s, 1),
        "cpu_s": round(used.ru_utime + used.ru_stime, 1),
        # Linux counts in KiB.
        "peak_mb": round(used.ru_maxrss * 1024 / 1e6),
        "cr_codes": round(total.cr_codes, 4),
        "entropy_bits_per_code": round(total.entropy_bits_per_code, 4),
        "bits_per_weight": round(total.bits_per_weight, 4),
        "bytes_on_disk": total.bytes_on_disk,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description="Time and peak memory of packing.")
    parser.add_argument("model", type=Path)
    parser.add_argument("--granularities", nargs="+", default=["group", "agq"])
    parser.add_argument("--embeddings", nargs="+", default=["keep", "int4"])
    arguments = parser.parse_args()
    largest = max(math.prod(shape) for shape in open_source(arguments.model).shapes.values())
    runs = []
    for granularity in arguments.granularities:
        for embeddings in arguments.embeddings:
            with tempfile.TemporaryDirectory(dir=arguments.model.parent) as folder:
                runs.append(measure(arguments.model, granularity, embeddings, Path(folder)))
    print(json.dumps({"limit_mb": round(4 * largest / 1e6 + 1000), "runs": runs}, indent=2))


if __name__ == "__main__":
    main()
