"""Tables 2 to 7 of the paper as ours, on tiny models made and trained here.

    python benchmarks/bench_llavolta.py --out benchmarks/llavolta.json [--tables 2,3,4,5,6,7] [--seeds 0,1,2,3,4]
    python benchmarks/bench_llavolta.py --out benchmarks/llavolta.json --show

A cell is an arm and a seed; it is written when its run is done, and not run again when the file has it, so that the
command can be stopped and started. The main claim takes all seeds, the rest the first three, clips the first. About a
minute of one core a run. --show prints the tables of RESULTS.md and runs nothing.
"""

import argparse
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import torch
from llavolta.arms import TABLES, Arm, Catalogue, num_seeds
from llavolta.cells import Cells
from llavolta.questions import EASY_VQA, read_questions
from llavolta.recipe import Recipe


def main() -> None:
    arguments = _arguments()
    cells = Cells(arguments.out)
    if arguments.show:
        from llavolta.tables import all_tables

        print(all_tables(cells))
        return
    if 4 in arguments.tables:
        from llavolta.prefill import time_prefills

        torch.set_num_threads(1)
        num_layers = _recipe(arguments).num_layers
        settings = (*Catalogue(num_layers).levels, None)
        cells.measure("prefill", lambda: time_prefills(settings, num_layers))
    seeds = list(enumerate(arguments.seeds))
    if arguments.processes == 1:
        for place, seed in seeds:
            run_seed(arguments, place, seed)
        return
    with ProcessPoolExecutor(arguments.processes, get_context("spawn")) as pool:
        for task in [pool.submit(run_seed, arguments, place, seed) for place, seed in seeds]:
            task.result()


def run_seed(arguments: argparse.Namespace, place: int, seed: int) -> None:
    """Every run of a seed that the file lacks."""
    from llavolta.experiment import Experiment

    torch.set_num_threads(1)
    recipe = _recipe(arguments)
    cells = Cells(arguments.out)
    expected = {**recipe.as_json(), "data": arguments.data.name, "model": str(arguments.model or "made here")}
    found = cells.measure("recipe", lambda: expected)
    if found != expected:
        raise SystemExit(f"{arguments.out}: expected the runs of {expected}, got those of {found}")
    questions = read_questions(arguments.data, arguments.images)
    cells.measure("prior", questions.prior)
    experiment = Experiment(cells, questions, recipe, seed, _folder(arguments.out), arguments.model)
    for arm in _arms(arguments, recipe):
        if place < num_seeds(arm, len(arguments.seeds)):
            experiment.measure(arm)


def _arms(arguments: argparse.Namespace, recipe: Recipe) -> list[Arm]:
    catalogue = Catalogue(recipe.num_layers)
    arms = {arm.name: arm for table in arguments.tables for arm in catalogue.of_table(table)}
    unknown = set(arguments.arms or []) - set(arms)
    if unknown:
        raise SystemExit(f"--arms: expected some of {', '.join(arms)}, got {', '.join(sorted(unknown))}")
    return [arm for name, arm in arms.items() if arguments.arms is None or name in arguments.arms]


def _folder(out: Path) -> Path:
    """Where starting points stay."""
    return out.resolve().with_suffix(".work")


def _recipe(arguments: argparse.Namespace) -> Recipe:
    given = {name: getattr(arguments, name) for name in ("num_layers", "start_steps", "num_steps")}
    return Recipe(**{name: value for name, value in given.items() if value is not None})


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="The paper's tables on tiny models.")
    numbers = lambda text: [int(each) for each in text.split(",")]  # noqa: E731
    parser.add_argument("--out", type=Path, required=True, help="the JSON file of all cells")
    parser.add_argument("--tables", type=numbers, default=list(TABLES), help="default: all")
    parser.add_argument("--arms", type=lambda text: text.split(","), help="default: all of the tables")
    parser.add_argument("--seeds", type=numbers, default=[0, 1, 2, 3, 4])
    parser.add_argument("--data", type=Path, default=EASY_VQA / "vqa.jsonl", help="default: easy-VQA")
    parser.add_argument("--images", type=Path, help="folder that image paths are relative to; default: the file's own")
    parser.add_argument("--model", type=Path, help="directory that all runs start from; default: made here, one a seed")
    parser.add_argument("--num-layers", type=int, help="decoder layers of models made here")
    parser.add_argument("--start-steps", type=int, help="steps of the language model before any run; 0: fresh")
    parser.add_argument("--num-steps", type=int, help="steps of a run")
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--show", action="store_true", help="print Markdown tables and run nothing")
    return parser.parse_args()


if __name__ == "__main__":
    main()
