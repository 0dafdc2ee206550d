"""What three-stage deeper saves at equal steps, and peak memory against CR; 576 visual and 64 text tokens.

    python benchmarks/bench_wall_clock.py --out benchmarks/wall_clock.json [--rounds 5] [--part time] [--part memory]
    python benchmarks/bench_wall_clock.py --out benchmarks/wall_clock.json --show

Time: Llavas of 8 and of 16 layers with random weights and cached vision features; staged and plain optimizer steps in
turn. Memory: a fresh process a point, its peak resident memory over two optimizer steps less what it held before them.
Measured once each, kept in the file; about 12 minutes of one core.
"""

import argparse
import json
import subprocess
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import torch
from llavolta.cells import Cells, Row
from llavolta.memory_point import POINTS

LAYERS = (8, 16)
NUM_STEPS = 9


def main() -> None:
    arguments = _arguments()
    cells = Cells(arguments.out)
    if not arguments.show:
        torch.set_num_threads(1)
        if "time" in arguments.part:
            for layers in LAYERS:
                cells.measure("time", partial(_time, layers, arguments.rounds), layers=layers)
        if "memory" in arguments.part:
            for layers, point, checkpointing in _points():
                measure = partial(_memory, layers, point, checkpointing)
                cells.measure("memory", measure, layers=layers, point=point, checkpointing=checkpointing)
    from llavolta.cost_tables import memory_tables, time_tables

    print("\n\n".join([*time_tables(cells), *memory_tables(cells)]))


def _time(num_layers: int, num_rounds: int) -> Row:
    from stagetrain import named_schedule
    from stagetrain.timing.synthetic import SyntheticShape, synthetic_batch, synthetic_llava
    from stagetrain.timing.wall_clock import summarize, time_schedule

    shape = SyntheticShape(num_layers=num_layers)
    schedule = named_schedule("three_stage_deeper", num_layers)
    batch = synthetic_batch(shape)
    rounds = time_schedule(synthetic_llava(shape), batch, schedule, NUM_STEPS, num_rounds)
    return summarize(rounds, schedule, batch["input_ids"].numel())


def _points() -> Iterator[tuple[int, str, bool]]:
    """A deep model fits with checkpointing alone."""
    for layers, points in POINTS.items():
        for point in points:
            yield from ((layers, point, on) for on in ((False, True) if layers == min(POINTS) else (True,)))


def _memory(num_layers: int, point: str, checkpointing: bool) -> Row:
    script = Path(__file__).parent / "llavolta" / "memory_point.py"
    # Blocks this large are given back when they are freed, so that resident memory is memory in use.
    environment = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536", "PATH": "/usr/bin:/bin"}
    command = [sys.executable, str(script), str(num_layers), point, str(int(checkpointing))]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{point}: {done.stderr}")
    row: Row = json.loads(done.stdout)
    return row


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Wall-clock time and memory of staged training.")
    parser.add_argument("--out", type=Path, required=True, help="the JSON file of all cells")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--part", action="append", choices=("time", "memory"), help="default: both")
    parser.add_argument("--show", action="store_true", help="print Markdown tables and run nothing")
    arguments = parser.parse_args()
    arguments.part = arguments.part or ["time", "memory"]
    return arguments


if __name__ == "__main__":
    main()
