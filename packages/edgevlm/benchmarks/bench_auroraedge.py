"""What compression loses and fusion gives back, on tiny models made and trained here: Table 6 as ours, and ablations.

    python benchmarks/bench_auroraedge.py --out benchmarks/auroraedge.json [--only fusion,compressors] [--seeds 0,1,2]
    python benchmarks/bench_auroraedge.py --out benchmarks/auroraedge.json --show

Every run starts from a Llava of 64 visual tokens that is trained once for each data set and seed and kept in --work.
A cell is an arm and a seed; it is written when its run is done, and not run again when the file has it, so that the
command can be stopped and started, and several of them with other seeds or data may share a file. --show prints the
tables of RESULTS.md and runs nothing.
"""

import argparse
import tempfile
from pathlib import Path

import torch
from auroraedge.arms import DATA, TABLES, Arm, arms_of
from auroraedge.cells import Cells
from auroraedge.recipe import Recipe


def main() -> None:
    arguments = _arguments()
    cells = Cells(arguments.out)
    if arguments.show:
        from auroraedge.tables import all_tables

        print(all_tables(cells))
        return
    torch.set_num_threads(1)
    recipe = Recipe()
    found = cells.measure("recipe", recipe.as_json)
    if found != recipe.as_json():
        raise SystemExit(f"{arguments.out}: expected the runs of {recipe.as_json()}, got those of {found}")
    for data in arguments.data:
        arms = [arm for arm in _arms(arguments.only) if arm.data == data]
        print(f"{data}: {len(arms)} arms, {len(arguments.seeds)} seeds", flush=True)
        run(data, arms, arguments.seeds, cells, recipe, arguments.work)


def run(data: str, arms: list[Arm], seeds: list[int], cells: Cells, recipe: Recipe, work: Path) -> None:
    """Every run of a data set that the file lacks; nothing where its files are not there."""
    from auroraedge.boards import boards
    from auroraedge.easy_vqa import EASY_VQA, easy_vqa
    from auroraedge.experiment import Experiment

    if data == "easy-vqa" and not EASY_VQA.exists():
        print(f"{data}: left out, there is no {EASY_VQA}", flush=True)
        return
    questions = (boards if data == "boards" else easy_vqa)(recipe.train_images, recipe.test_images)
    cells.measure("prior", questions.prior, data=data)
    for seed in seeds:
        experiment = Experiment(cells, questions, recipe, seed, work)
        for arm in arms:
            experiment.measure(arm)


def _arms(tables: list[str]) -> list[Arm]:
    """Those of the tables, each once."""
    return list(dict.fromkeys(arm for table in tables for arm in arms_of(table)))


def _arguments() -> argparse.Namespace:
    here = Path(__file__).resolve().parent
    names = lambda text: text.split(",")  # noqa: E731
    parser = argparse.ArgumentParser(description="What compression loses and fusion gives back, on tiny models.")
    parser.add_argument("--out", type=Path, default=here / "auroraedge.json", help="the JSON file of all cells")
    parser.add_argument("--only", type=names, default=list(TABLES), help=f"tables: some of {','.join(TABLES)}")
    parser.add_argument("--data", type=names, default=list(DATA), help=f"some of {','.join(DATA)}")
    parser.add_argument("--seeds", type=lambda text: [int(each) for each in text.split(",")], default=[0, 1, 2])
    parser.add_argument("--work", type=Path, default=Path(tempfile.gettempdir()) / "bench-auroraedge")
    parser.add_argument("--show", action="store_true", help="print Markdown tables and run nothing")
    arguments = parser.parse_args()
    for name, known in (("only", TABLES), ("data", DATA)):
        if unknown := set(getattr(arguments, name)) - set(known):
            parser.error(f"--{name}: expected some of {', '.join(known)}, got {', '.join(sorted(unknown))}")
    return arguments


if __name__ == "__main__":
    main()
