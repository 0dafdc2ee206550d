"""Compression ratio and time of every scheme; prints JSON.

    python benchmarks/bench_pack.py [--model DIR_OR_FILE] [--size 2048]

Without --model: one Gaussian matrix in bfloat16. Times are of one thread, disk included.
"""

import argparse
import json
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from quantpack import Granularity, Scheme, inspect, pack, read_tensors, verify

GRANULARITIES: tuple[Granularity, ...] = ("tensor", "channel", "group")


def measure(src: Path, scheme: Scheme, folder: Path) -> dict[str, Any]:
    out = folder / f"{scheme.granularity}-{scheme.symmetric}"
    times = [time.perf_counter()]
    pack(src, out, scheme)
    times.append(time.perf_counter())
    verify(out)
    times.append(time.perf_counter())
    read_tensors(out)
    times.append(time.perf_counter())
    total = inspect(out)[-1]
    return {
        **scheme.as_fields(),
        "num_weights": total.num_weights,
        "cr_codes": round(total.cr_codes, 4),
        "bits_per_weight": round(total.bits_per_weight, 4),
        "bytes_on_disk": total.bytes_on_disk,
        "pack_s": round(times[1] - times[0], 3),
        "verify_s": round(times[2] - times[1], 3),
        "read_s": round(times[3] - times[2], 3),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description="Compression ratio and time of every scheme.")
    parser.add_argument("--model", type=Path, help="a model directory or a safetensors file")
    parser.add_argument("--size", type=int, default=2048, help="rows and columns of the Gaussian matrix")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        src = arguments.model
        if src is None:
            src = folder / "gaussian.safetensors"
            generator = torch.Generator().manual_seed(0)
            weight = torch.randn(arguments.size, arguments.size, generator=generator).to(torch.bfloat16)
            save_file({"gaussian": weight}, src)
        schemes = [Scheme(granularity=g, symmetric=symmetric) for g in GRANULARITIES for symmetric in (False, True)]
        print(json.dumps([measure(src, scheme, folder) for scheme in schemes], indent=2))


if __name__ == "__main__":
    main()
