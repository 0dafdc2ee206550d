"""How long a pack takes to be ready for its first forward, against bfloat16 safetensors; prints JSON.

    python benchmarks/make_qwen_shape.py MODEL
    quantpack pack MODEL PACK
    python benchmarks/bench_load.py MODEL PACK [--rounds 5]

Every load is a process of its own, on files that are in the page cache; imports are not counted. Ready means that
every weight is in memory: transformers maps safetensors and reads nothing before the first forward, so a byte of
each page is read after loading, in both. Rounds alternate; the ratio is the median of pack over safetensors, pair by
pair. `first_forward_s` is a forward of 8 tokens after that: packed layers dequantize in it.
"""

import argparse
import json
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch

KINDS = {"safetensors": {}, "packed": {}, "dequantized": {"dequantize": True}}


def load_once(directory: Path, kind: str) -> dict[str, float]:
    """Times of one load in this process."""
    from transformers import AutoModelForCausalLM

    from quantpack import QuantpackConfig

    options = {"quantization_config": QuantpackConfig(**KINDS[kind])} if kind != "safetensors" else {}
    start = time.perf_counter()
    model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.bfloat16, **options)
    loaded = time.perf_counter()
    for tensor in (*model.parameters(), *model.buffers()):
        tensor.detach().reshape(-1).view(torch.uint8)[::4096].sum()
    ready = time.perf_counter()
    with torch.no_grad():
        model(input_ids=torch.arange(8)[None])
    return {
        "from_pretrained_s": loaded - start,
        "ready_s": ready - start,
        "first_forward_s": time.perf_counter() - ready,
        # Linux counts in KiB.
        "peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6,
    }


def in_a_process(directory: Path, kind: str) -> dict[str, float]:
    """`load_once` in a new process."""
    made = subprocess.run(
        [sys.executable, __file__, str(directory), str(directory), "--once", kind],
        check=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    found: dict[str, float] = json.loads(made.stdout.splitlines()[-1])
    return found


def compare(model: Path, pack: Path, rounds: int) -> dict[str, Any]:
    """Medians of each kind, and of the ratios."""
    runs: dict[str, list[dict[str, float]]] = {kind: [] for kind in KINDS}
    for _ in range(rounds):
        for kind, found in runs.items():
            found.append(in_a_process(model if kind == "safetensors" else pack, kind))
    result: dict[str, Any] = {
        kind: {name: round(statistics.median(run[name] for run in found), 3) for name in found[0]}
        for kind, found in runs.items()
    }
    for kind in ("packed", "dequantized"):
        pairs = zip(runs[kind], runs["safetensors"], strict=True)
        result[f"ready_ratio_{kind}"] = round(statistics.median(a["ready_s"] / b["ready_s"] for a, b in pairs), 3)
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description="Time to the first forward.")
    parser.add_argument("model", type=Path)
    parser.add_argument("pack", type=Path)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--once", choices=KINDS, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.once:
        print(json.dumps(load_once(arguments.model, arguments.once)))
    else:
        print(json.dumps(compare(arguments.model, arguments.pack, arguments.rounds), indent=2))


if __name__ == "__main__":
    main()
