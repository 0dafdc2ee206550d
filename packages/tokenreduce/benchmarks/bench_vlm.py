"""DFMR's learning numbers: the paper's Table 1 as ours, and every rival at an equal mean number of tokens.

    python benchmarks/bench_vlm.py --out benchmarks/results.json [--seed 0 --seed 1 ...] [--work DIR]
    python benchmarks/bench_vlm.py --out benchmarks/results.json --table

A cell that the file has is not measured again, and weights stay in --work, so a run can be stopped and started.
Processes with different seeds may share the file. Tiny models, made and trained here: about 20 minutes of one core a
seed. --table prints the tables of RESULTS.md and measures nothing.
"""

import argparse
import tempfile
from pathlib import Path

import torch
from vlm.cells import Cells


def main() -> None:
    arguments = _arguments()
    torch.set_num_threads(1)
    cells = Cells(arguments.out)
    if arguments.table:
        from vlm.tables import all_tables

        print(all_tables(cells))
        return
    from vlm.data import question_prior
    from vlm.experiment import Experiment
    from vlm.subject import Subject, make_splits

    splits = make_splits()
    cells.measure("prior", question_prior, splits["train"], splits["test"])
    for seed in arguments.seed:
        subject = Subject(seed=seed, folder=arguments.work, tower_steps=arguments.tower_steps)
        Experiment(cells, splits, subject, arguments.steps).measure()


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="DFMR's learning numbers.")
    parser.add_argument("--out", type=Path, required=True, help="the JSON file of all cells")
    parser.add_argument("--seed", type=int, action="append", help="default 0, 1 and 2")
    parser.add_argument("--work", type=Path, help="where weights and features stay; default: in the temporary folder")
    parser.add_argument("--steps", type=int, default=1200, help="of projector and language model")
    parser.add_argument("--tower-steps", type=int, default=2000)
    parser.add_argument("--table", action="store_true", help="print Markdown tables and measure nothing")
    arguments = parser.parse_args()
    arguments.seed = arguments.seed or [0, 1, 2]
    arguments.work = arguments.work or Path(tempfile.gettempdir()) / "tokenreduce-vlm"
    return arguments


if __name__ == "__main__":
    main()
