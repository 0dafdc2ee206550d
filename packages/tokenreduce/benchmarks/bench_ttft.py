"""Time to first token against visual tokens, at a 1.5B-class shape beside CLIP ViT-L/14-336, on the CPU.

    python benchmarks/bench_ttft.py --out benchmarks/ttft.json --run [--rounds 5]
    python benchmarks/bench_ttft.py --out benchmarks/ttft.json          prints the tables

Every round times every piece once, in turn, so that what else the machine does falls on all of them; a round is a
cell, written when it is over, and a run goes on after the last one. Weights are random. About 6 GB of memory and
2 minutes a round.
"""

import argparse
from pathlib import Path

import torch
from vlm.cells import Cells


def main() -> None:
    parser = argparse.ArgumentParser(description="Time to first token against visual tokens.")
    parser.add_argument("--out", type=Path, required=True, help="the JSON file of all rounds")
    parser.add_argument("--run", action="store_true", help="measure the rounds that the file lacks")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    cells = Cells(arguments.out)
    if arguments.run:
        from vlm.prefill import Pieces

        torch.set_num_threads(arguments.threads)
        pieces = Pieces()
        for round_ in range(arguments.rounds):
            cells.measure("ttft", pieces.time_all, threads=arguments.threads, round=round_)
    from vlm.prefill_tables import all_tables

    print(all_tables(cells))


if __name__ == "__main__":
    main()
