"""Runs jobs one process after another, round by round, and keeps what is finished in a file.

Rounds are interleaved: each runs every model once, so whatever slows the machine for a while hits all.
"""

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from edgevlm.benching.jobs import BenchJob
from edgevlm.errors import BenchError
from vlmpress.artifact import whole_file

FORMAT = 1
_VARYING = ("model", "is_directory", "batch_size", "with_shares")
_FRESH_PROCESS = (sys.executable, "-m", "edgevlm.benching.worker")

Record = dict[str, Any]


@dataclass(frozen=True, kw_only=True, slots=True)
class Plan:
    """Jobs of a bench, without their rounds.

    Attributes:
        models: Of the same settings; each has a name of its own.
        batch_sizes: Each model runs with each.
        num_rounds: How often.
    """

    models: tuple[BenchJob, ...]
    batch_sizes: tuple[int, ...]
    num_rounds: int

    def __post_init__(self) -> None:
        names = [job.model for job in self.models]
        if not names or len(set(names)) < len(names):
            raise BenchError(f"models: expected at least one, each once, got {', '.join(names) or 'none'}")
        if self.num_rounds < 1 or not self.batch_sizes or min(self.batch_sizes) < 1:
            raise BenchError(f"rounds, batch: expected at least 1, got {self.num_rounds}, {list(self.batch_sizes)}")

    @property
    def settings(self) -> Record:
        """What all records of a file have in common."""
        return {name: value for name, value in self.models[0].fields.items() if name not in _VARYING}

    def jobs(self) -> Iterator[tuple[int, BenchJob]]:
        """Round and job, in the order they run in; shares are measured in the first round."""
        for number in range(self.num_rounds):
            for batch_size in self.batch_sizes:
                for job in self.models:
                    yield number, replace(job, batch_size=batch_size, with_shares=number == 0)


def run_plan(plan: Plan, out: Path | None, tell: Callable[[int, int, str], None]) -> Record:
    """Runs what `out` does not hold yet; `out` is whole after every process.

    Args:
        plan: What to run.
        out: JSON file to resume from and write to; None keeps nothing.
        tell: Called before each process with how many jobs are done, how many there are, and the job's name.

    Returns:
        `settings`, and `records`: one of each model, batch size and round of the plan.

    Raises:
        BenchError: `out` is no file of this bench or has other settings, or a process failed.
    """
    kept = [] if out is None or not out.exists() else _read(out, plan.settings)
    jobs = list(plan.jobs())
    for done, (number, job) in enumerate(jobs):
        tell(done, len(jobs), f"{job.model} batch {job.batch_size}, round {number + 1}")
        if _find(kept, number, job) is not None:
            continue
        key = {"model": job.model, "batch_size": job.batch_size, "round": number}
        kept.append(key | _run(job))
        if out is not None:
            _write(out, {"format": FORMAT, "settings": plan.settings, "records": kept})
    tell(len(jobs), len(jobs), "")
    return {"settings": plan.settings, "records": [_find(kept, *numbered) for numbered in jobs]}


def _run(job: BenchJob) -> Record:
    done = subprocess.run(
        [*_FRESH_PROCESS, json.dumps(job.fields)], stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False
    )
    try:
        measured = json.loads(done.stdout)
    except ValueError:
        measured = None
    if done.returncode or not isinstance(measured, dict):
        said = done.stderr.strip().splitlines()
        reason = said[-1].removeprefix("error: ") if said else "no message; maybe out of memory"
        raise BenchError(f"{job.model}, batch {job.batch_size}: its process ended with {done.returncode}: {reason}")
    return measured


def _find(records: list[Record], number: int, job: BenchJob) -> Record | None:
    wanted = (job.model, job.batch_size, number)
    return next((r for r in records if (r["model"], r["batch_size"], r["round"]) == wanted), None)


def _read(path: Path, settings: Record) -> list[Record]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        found, records = content["settings"], content["records"]
        known = content["format"] == FORMAT and all({"model", "batch_size", "round"} <= set(r) for r in records)
    except (OSError, ValueError, TypeError, LookupError) as error:
        raise BenchError(f"{path}: expected rounds of a bench as JSON, got {error}") from error
    if not known:
        raise BenchError(f"{path}: expected rounds of a bench in format {FORMAT}, got another file")
    differing = [name for name in settings if found.get(name) != settings[name]]
    if differing:
        name = differing[0]
        raise BenchError(
            f"{path}: expected rounds with {name} {settings[name]!r}, got {found.get(name)!r}; name another file"
        )
    return list(records)


def _write(path: Path, content: Record) -> None:
    with whole_file(path) as file:
        file.write((json.dumps(content, indent=1) + "\n").encode())
