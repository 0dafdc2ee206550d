"""Time and peak memory of packing a model directory, each way in a process of its own; prints JSON.

    python benchmarks/make_qwen_shape.py MODEL
    python benchmarks/bench_pack_memory.py MODEL

Peak memory is the largest resident size of the process, imports and mapped pages of the source included. The limit is
twice the largest layer at two bytes a weight and a gigabyte, and with calibration four of its widest covariance
matrices. The largest layer is the embedding; `limit_decoder_layer_mb` takes the largest decoder layer instead.
Calibration: 8 samples of 128 random tokens.
"""

import argparse
import json
import math
import os
import sys
import tempfile
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

import torch

from quantpack import PartRecipe, Recipe, Scheme, inspect, pack
from quantpack.methods.registry import METHODS
from quantpack.source import open_source

# Name, granularity, embeddings, and the method where there is calibration.
WAYS = (
    ("group", "group", "keep", None),
    ("agq", "agq", "keep", None),
    ("group, int4 embeddings", "group", "int4", None),
    ("agq, calibrated", "agq", "keep", "rtn"),
    ("group, gptq", "group", "keep", "gptq"),
)


def pack_once(model: Path, out: Path, name: str) -> None:
    """Packs in this process."""
    _, granularity, embeddings, method = next(way for way in WAYS if way[0] == name)
    part = PartRecipe(scheme=Scheme(granularity=granularity), method=METHODS[method or "rtn"]())
    tokens = torch.randint(0, 1000, (8, 128), generator=torch.Generator().manual_seed(0))
    samples = None if method is None else [{"input_ids": row[None]} for row in tokens]
    pack(model, out, Recipe(default=part, embeddings=embeddings), samples)


def measure(model: Path, name: str, folder: Path) -> dict[str, Any]:
    """`pack_once` in a new process."""
    out = folder / "pack"
    start = time.perf_counter()
    child = os.posix_spawn(
        sys.executable,
        [sys.executable, __file__, str(model), "--once", name, str(out)],
        os.environ,
        file_actions=[(os.POSIX_SPAWN_OPEN, 1, os.devnull, os.O_WRONLY, 0)],
    )
    _, status, used = os.wait4(child, 0)
    wall_s = time.perf_counter() - start
    if status:
        raise SystemExit(f"{name} failed")
    total = inspect(out)[-1]
    return {
        "way": name,
        "wall_s": round(wall_s, 1),
        "cpu_s": round(used.ru_utime + used.ru_stime, 1),
        # Linux counts in KiB.
        "peak_mb": round(used.ru_maxrss * 1024 / 1e6),
        "cr_codes": round(total.cr_codes, 4),
        "entropy_bits_per_code": round(total.entropy_bits_per_code, 4),
        "bits_per_weight": round(total.bits_per_weight, 4),
        "bytes_on_disk": total.bytes_on_disk,
    }


def limits(model: Path) -> dict[str, int]:
    """Megabytes that packing may take."""
    shapes = open_source(model).shapes
    layers: dict[str, int] = defaultdict(int)
    for name, shape in shapes.items():
        layers[name.split("layers.")[1].split(".")[0] if "layers." in name else name] += math.prod(shape)
    widest = max(shape[1] for name, shape in shapes.items() if "layers." in name and len(shape) == 2)
    decoder = max(size for name, size in layers.items() if name.isdigit())
    gigabyte, covariances = 1e9, 4 * 4 * widest**2
    return {
        "limit_mb": round((4 * max(layers.values()) + gigabyte) / 1e6),
        "limit_decoder_layer_mb": round((4 * decoder + gigabyte) / 1e6),
        "covariances_mb": round(covariances / 1e6),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description="Time and peak memory of packing.")
    parser.add_argument("model", type=Path)
    parser.add_argument("--ways", nargs="+", choices=[way[0] for way in WAYS], default=[way[0] for way in WAYS])
    parser.add_argument("--once", nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.once:
        pack_once(arguments.model, Path(arguments.once[1]), arguments.once[0])
        return
    runs = []
    for name in arguments.ways:
        with tempfile.TemporaryDirectory(dir=arguments.model.parent) as folder:
            runs.append(measure(arguments.model, name, Path(folder)))
            print(json.dumps(runs[-1]), file=sys.stderr, flush=True)
    print(json.dumps({**limits(arguments.model), "runs": runs}, indent=2))


if __name__ == "__main__":
    main()
