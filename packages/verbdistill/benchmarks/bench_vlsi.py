"""Tables 4a to 4f of the paper as ours and the main claim, on tiny pairs.

    vlmpress run benchmarks/teacher.yaml --only teacher --seed 0      # prints DIR; again with seeds 1 to 4
    python benchmarks/bench_vlsi.py --out benchmarks/vlsi.json --teachers DIR,DIR,DIR,DIR,DIR [--tables main,4d]
    python benchmarks/bench_vlsi.py --out benchmarks/vlsi.json --show

A cell is an arm and a seed; it is written when its run is done, and not run again when the file has it, so that the
command can be stopped and started. The main claim takes all teachers, one a seed, the rest the first three. One to two
minutes of one core a run. --show prints the tables of RESULTS.md and runs nothing.
"""

import argparse
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import torch
from vlsi.arms import TABLES, Arm, Catalogue, num_seeds
from vlsi.cells import Cells
from vlsi.questions import EASY_VQA, prior, read_splits
from vlsi.recipe import Recipe


def main() -> None:
    arguments = _arguments()
    if arguments.show:
        from vlsi.tables import all_tables

        print(all_tables(Cells(arguments.out)))
        return
    seeds = range(len(arguments.teachers))
    if arguments.processes == 1:
        for seed in seeds:
            run_seed(arguments, seed)
        return
    with ProcessPoolExecutor(arguments.processes, get_context("spawn")) as pool:
        for task in [pool.submit(run_seed, arguments, seed) for seed in seeds]:
            task.result()


def run_seed(arguments: argparse.Namespace, seed: int) -> None:
    """Every run of a seed that the file lacks."""
    from vlsi.experiment import Experiment, Splits

    torch.set_num_threads(1)
    recipe = _recipe(arguments)
    cells = Cells(arguments.out)
    expected = {**recipe.as_json(), "data": arguments.data.name}
    found = cells.measure("recipe", lambda: expected)
    if found != expected:
        raise SystemExit(f"{arguments.out}: expected the runs of {expected}, got those of {found}")
    train, test = read_splits(arguments.data, arguments.images)
    cells.measure("prior", lambda: prior(train, test))
    experiment = Experiment(cells, Splits(train=train, test=test), recipe, seed, arguments.teachers[seed])
    for arm in _arms(arguments, recipe):
        if seed < num_seeds(arm, len(arguments.teachers)):
            experiment.measure(arm)


def _arms(arguments: argparse.Namespace, recipe: Recipe) -> list[Arm]:
    catalogue = Catalogue(recipe.interaction)
    arms = {arm.name: arm for table in arguments.tables for arm in catalogue.of_table(table)}
    unknown = set(arguments.arms or []) - set(arms)
    if unknown:
        raise SystemExit(f"--arms: expected some of {', '.join(arms)}, got {', '.join(sorted(unknown))}")
    return [arm for name, arm in arms.items() if arguments.arms is None or name in arguments.arms]


def _recipe(arguments: argparse.Namespace) -> Recipe:
    given = {name: getattr(arguments, name) for name in ("num_images", "num_layers", "num_steps", "interaction")}
    return Recipe(**{name: value for name, value in given.items() if value is not None})


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="The paper's ablations on tiny pairs.")
    names = lambda text: text.split(",")  # noqa: E731
    parser.add_argument("--out", type=Path, required=True, help="the JSON file of all cells")
    parser.add_argument(
        "--teachers", type=lambda text: [Path(each) for each in text.split(",")], default=[], help="one a seed"
    )
    parser.add_argument("--tables", type=names, default=list(TABLES), help="default: all")
    parser.add_argument("--arms", type=names, help="default: all of the tables")
    parser.add_argument("--data", type=Path, default=EASY_VQA / "vqa.jsonl", help="default: easy-VQA")
    parser.add_argument("--images", type=Path, help="folder that image paths are relative to; default: the file's own")
    parser.add_argument("--num-images", type=int, help="training images that students see")
    parser.add_argument("--num-layers", type=int, help="decoder layers of the students")
    parser.add_argument("--num-steps", type=int, help="optimizer steps of a student")
    parser.add_argument("--interaction", type=float, help="share of them that is interaction")
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--show", action="store_true", help="print Markdown tables and run nothing")
    return parser.parse_args()


if __name__ == "__main__":
    main()
