"""Frames to packed codes, all checks included, against plain zstd on the same frames in memory; prints JSON.

    python benchmarks/bench_decode.py [--size 8192] [--rounds 15] [--threads 1 2 4]

Rounds alternate; a ratio is the median of plain time over ours, pair by pair. Two pairs are like with like: `ours`
gives a tensor in memory of its own, scales and zeros read and checked as well, and `plain_kept` holds every frame's
content; `ours_warm` decodes and checks codes into memory used before, and `plain_dropped` lets each frame's content
go, so that it is written all over the same half megabyte. Speeds are of packed bytes.
"""

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import zstandard

from quantpack import Scheme, quantize_tensor
from quantpack.container.reading import PackReader
from quantpack.container.writing import PackWriter


def write_pack(path: Path, size: int) -> None:
    writer = PackWriter(Scheme())
    weight = torch.randn(size, size, generator=torch.Generator().manual_seed(0)).to(torch.bfloat16)
    writer.add_quantized("w", quantize_tensor(weight, Scheme()))
    writer.write(path)


def compare(path: Path, num_threads: int, rounds: int) -> dict[str, Any]:
    reader = PackReader(path, num_threads=num_threads)
    entry = reader.entry("w")
    frames = reader.frames("w")
    decompressor = zstandard.ZstdDecompressor()

    def plain_kept() -> object:
        return [decompressor.decompress(frame) for frame in frames]

    def plain_dropped() -> object:
        for frame in frames:
            decompressor.decompress(frame)
        return None

    def ours() -> object:
        return reader.packed("w")

    warm = np.zeros(sum(end - begin for begin, end in entry.frame_extents()), dtype=np.uint8)

    def ours_warm() -> object:
        reader._frames(entry).read_into(warm, reader._code_check(entry), num_threads)
        return None

    works: dict[str, Callable[[], object]] = {
        "plain_kept": plain_kept,
        "ours": ours,
        "plain_dropped": plain_dropped,
        "ours_warm": ours_warm,
    }
    # One thread: processor time, which other programs do not stretch.
    clock = time.process_time if num_threads == 1 else time.perf_counter
    times: dict[str, list[float]] = {name: [] for name in works}
    held = []
    for _ in range(rounds):
        for name, work in works.items():
            start = clock()
            # Held to the end, so that each round gets memory as new as a reader that starts.
            held.append(work())
            times[name].append(clock() - start)
    num_bytes = -(-entry.num_weights // 2)
    return {
        "threads": num_threads,
        "frames": len(frames),
        **{f"{name}_mb_s": round(num_bytes / statistics.median(found) / 1e6) for name, found in times.items()},
        "ratio": median_ratio(times["plain_kept"], times["ours"]),
        "ratio_warm": median_ratio(times["plain_dropped"], times["ours_warm"]),
    }


def median_ratio(plain: list[float], ours: list[float]) -> float:
    return round(statistics.median(a / b for a, b in zip(plain, ours, strict=True)), 3)


def main() -> None:
    parser = argparse.ArgumentParser(description="Decoding against plain zstd.")
    parser.add_argument("--size", type=int, default=8192, help="rows and columns of the Gaussian matrix")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2, 4])
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "pack.safetensors"
        write_pack(path, arguments.size)
        print(json.dumps([compare(path, count, arguments.rounds) for count in arguments.threads], indent=2))


if __name__ == "__main__":
    main()
