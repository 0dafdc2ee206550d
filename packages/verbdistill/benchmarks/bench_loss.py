"""Peak memory and time of the fused losses, against losses that make all logits and against TRL's GKD.

Cells go into a JSON file as they end and are not measured again; Markdown of all that is there goes to stdout.
Every cell is a fresh process on one thread. CPU seconds are compared, so that a busy machine does not show.
"""

import argparse
import json
import subprocess
import sys
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path

import torch
from loss.cells import Cell, measure

PAPER = {"num_words": 151_936, "num_tokens": 512, "hidden": 1536}
"""Qwen2-VL's vocabulary, a student as wide as its 2B model."""

FITS = {"num_words": 32_000, "num_tokens": 128, "hidden": 1536, "student_targets": 7, "teacher_targets": 20}

MEMORY = {
    "KL of 7 x 20": Cell(loss="pairwise_kl", **PAPER, student_targets=7, teacher_targets=20),
    "KL of 7 x 7": Cell(loss="pairwise_kl", **PAPER, student_targets=7, teacher_targets=7),
    "cross-entropy": Cell(loss="ar_loss", **PAPER),
    "last layer's KL": Cell(loss="last_kl", **PAPER),
    "GKD, beta 0 (the same KL)": Cell(loss="gkd_kl", **PAPER),
    "GKD, beta 0.5 (its default)": Cell(loss="gkd_jsd", **PAPER),
    "KL of 7 x 20, 64 MiB of logits": Cell(
        loss="pairwise_kl", **PAPER, student_targets=7, teacher_targets=20, logits_mib=64
    ),
}

TIME = {
    "fused": Cell(loss="pairwise_kl", **FITS, repeats=3),
    "fused, bfloat16 weights and features": Cell(loss="pairwise_kl", **FITS, dtype="bfloat16"),
    "pair by pair, all log-probabilities kept": Cell(loss="pair_by_pair", **FITS, repeats=3),
    "all pairs at once": Cell(loss="naive", **FITS, repeats=3),
    "L2 of logits, fused": Cell(loss="pairwise_logit_l2", **FITS, repeats=3),
    "KL to 32 kept words, fused, the teacher's words chosen too": Cell(loss="truncated_pairwise_kl", **FITS, repeats=3),
    "sorted probabilities, fused": Cell(loss="pairwise_sorted_distance", **FITS),
    "last layer's KL, fused": Cell(loss="last_kl", **{**FITS, "student_targets": 1, "teacher_targets": 1}, repeats=3),
    "GKD, beta 0": Cell(loss="gkd_kl", **{**FITS, "student_targets": 1, "teacher_targets": 1}, repeats=3),
    "GKD, beta 0.5": Cell(loss="gkd_jsd", **{**FITS, "student_targets": 1, "teacher_targets": 1}, repeats=3),
}


def naive_bytes(cell: Cell) -> int:
    """(t_s t_l + t_s + t_l) T V 4: terms of all pairs and log-probabilities of all targets."""
    pairs = cell.student_targets * cell.teacher_targets + cell.student_targets + cell.teacher_targets
    return pairs * cell.num_tokens * cell.num_words * 4


def key(cell: Cell) -> str:
    return json.dumps(asdict(cell), sort_keys=True)


def fill(out: Path, cells: Iterable[Cell]) -> dict[str, dict[str, float]]:
    """Measures what the file lacks, one process each."""
    done: dict[str, dict[str, float]] = json.loads(out.read_text()) if out.exists() else {}
    for cell in cells:
        if key(cell) in done:
            continue
        print(f"measuring {cell}", file=sys.stderr)
        command = [sys.executable, __file__, "--cell", key(cell)]
        done[key(cell)] = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout)
        partial = out.with_suffix(".tmp")
        partial.write_text(json.dumps(done, indent=1, sort_keys=True) + "\n")
        partial.replace(out)
    return done


def table(title: str, cells: dict[str, Cell], done: dict[str, dict[str, float]]) -> str:
    lines = [title, "", "| | peak above inputs, MB | unfused, by formula, MB | CPU s | loss |", "|---|---|---|---|---|"]
    for name, cell in cells.items():
        if key(cell) in done:
            found = done[key(cell)]
            lines.append(
                f"| {name} | {found['peak_bytes'] / 1e6:,.0f} | {naive_bytes(cell) / 1e6:,.0f} | {found['cpu_s']:.1f} "
                f"| {found['loss']:.6f} |"
            )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path(__file__).with_name("loss.json"))
    parser.add_argument("--only", choices=("memory", "time", "none"), help="measure one table, or only print")
    parser.add_argument("--cell", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.cell:
        torch.set_num_threads(1)
        print(json.dumps(measure(Cell(**json.loads(arguments.cell)))))
        return
    cells = {"memory": MEMORY.values(), "time": TIME.values(), "none": ()}
    chosen = cells[arguments.only] if arguments.only else [*TIME.values(), *MEMORY.values()]
    done = fill(arguments.out, chosen)
    sizes = "{num_words:,} words, {num_tokens} tokens, hidden {hidden}, forward and backward, one thread"
    print(table("At " + sizes.format(**PAPER) + ".", MEMORY, done))
    print()
    print(table("At " + sizes.format(**FITS) + ", 7 x 20 targets or the last layers.", TIME, done))


if __name__ == "__main__":
    main()
