"""ECM's numbers as ours: fidelity, Tables 1, 2 and 4, Figures 4 and 6, and real matrices. Every cell is kept.

    python benchmarks/bench_ecm.py --out results.json [--model DIR --model DIR ... --data FILE --images DIR]
        [--weights DIR] [--bits 4 --bits 3 ...] [--search-bits 2 ...]
    python benchmarks/bench_ecm.py --out results.json [--table] [--figures DIR --bits 2]

A cell that the file has is not measured again, so a run can be stopped and started. Models come from
`vlmpress demo --only teacher --seed N`; --data has splits train (calibration, search) and test (reported).
"""

import argparse
import tempfile
from pathlib import Path

import torch
from ecm.cells import Cells
from ecm.fidelity import measure_fidelity
from ecm.models import measure_tables
from ecm.subjects import open_subject


def main() -> None:
    arguments = _arguments()
    torch.set_num_threads(1)
    cells = Cells(arguments.out)
    if arguments.table or arguments.figures:
        _show(cells, arguments)
        return
    measure_fidelity(cells)
    if arguments.weights:
        from ecm.matrices import measure_matrices

        measure_matrices(cells, arguments.weights)
    if arguments.model:
        with tempfile.TemporaryDirectory() as folder:
            subjects = [
                open_subject(model, arguments.data, arguments.images, Path(folder)) for model in arguments.model
            ]
            measure_tables(cells, subjects, arguments.bits, arguments.search_bits)


def _show(cells: Cells, arguments: argparse.Namespace) -> None:
    from ecm.tables import all_tables

    if arguments.table:
        print(all_tables(cells))
    if arguments.figures:
        from ecm.figures import draw

        draw(cells, arguments.figures, arguments.bits[0])


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="ECM's numbers as ours.")
    parser.add_argument("--out", type=Path, required=True, help="the JSON file of all cells")
    parser.add_argument("--model", type=Path, action="append", default=[], help="a trained model's directory")
    parser.add_argument("--data", type=Path, help="questions with splits train and test")
    parser.add_argument("--images", type=Path, help="what image paths are relative to")
    parser.add_argument("--weights", type=Path, help="a folder of trained matrices in safetensors files")
    parser.add_argument("--bits", type=int, action="append", help="of codes; default 4, 3 and 2")
    parser.add_argument("--search-bits", type=int, action="append", help="for Tables 2 and 4; default: all of --bits")
    parser.add_argument("--table", action="store_true", help="print Markdown tables and measure nothing")
    parser.add_argument("--figures", type=Path, help="draw Figures 4 and 6 at --bits here, measure nothing")
    arguments = parser.parse_args()
    arguments.bits = arguments.bits or [4, 3, 2]
    arguments.search_bits = arguments.search_bits or arguments.bits
    if arguments.model and not arguments.data:
        parser.error("--model: expected --data as well")
    return arguments


if __name__ == "__main__":
    main()
