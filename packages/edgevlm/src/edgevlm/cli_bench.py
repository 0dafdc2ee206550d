"""`edgevlm bench`."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from edgevlm.cli_options import Dtype
from edgevlm.errors import BenchError

if TYPE_CHECKING:
    from edgevlm.benching.jobs import BenchJob


def bench(
    directories: Annotated[list[Path] | None, typer.Argument(help="Saved models and packs.")] = None,
    models: Annotated[
        str | None,
        typer.Option(help="Presets, by commas; auroraedge-v-2b:FUSION. Default: all, or none with a directory."),
    ] = None,
    rounds: Annotated[int, typer.Option(min=1, help="Processes of each model and batch size.")] = 5,
    tokens: Annotated[int, typer.Option(min=1, help="New tokens of each row.")] = 32,
    batch: Annotated[str, typer.Option(help="Batch sizes, by commas.")] = "1",
    text_tokens: Annotated[int, typer.Option(min=1, help="Text tokens of a prompt, template included.")] = 28,
    image: Annotated[str, typer.Option(help="Size of each row's image.")] = "640x480",
    dtype: Annotated[Dtype, typer.Option(help="Of weights and activations.")] = Dtype.BFLOAT16,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
    threads: Annotated[int | None, typer.Option(min=1, help="Of torch; default one a core.")] = None,
    repeats: Annotated[int, typer.Option(min=1, help="Timed requests of a process.")] = 1,
    random_weights: Annotated[bool, typer.Option(help="Of directories, take the configuration only.")] = False,
    unpack: Annotated[bool, typer.Option(help="Load packs as ordinary weights, in their loader's type.")] = False,
    out: Annotated[
        Path | None, typer.Option(help="JSON of finished rounds; an interrupted bench goes on from it.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    save: Annotated[
        Path | None, typer.Option(help="Write the one preset of --models as a directory; no bench.")
    ] = None,
) -> None:
    """Times models side by side: each in a process of its own, round by round, at the paper's setting."""
    import os

    from edgevlm.benching.jobs import BenchJob
    from edgevlm.benching.rounds import Plan, run_plan
    from edgevlm.benching.summary import bench_table, summarize
    from vlmpress.cli import progress

    settings: dict[str, Any] = {
        "random_weights": random_weights, "unpack": unpack, "image": image, "num_text_tokens": text_tokens,
        "num_new_tokens": tokens, "dtype": dtype.value, "device": _device(device),
        "num_threads": threads or os.cpu_count() or 1, "num_repeats": repeats,
    }  # fmt: skip
    names = _preset_names(models, bool(directories))
    jobs = [BenchJob(model=name, **settings) for name in names]
    jobs += [BenchJob(model=str(path), is_directory=True, **settings) for path in directories or []]
    if save is not None:
        _save(jobs, save)
        return
    plan = Plan(models=tuple(jobs), batch_sizes=_batch_sizes(batch), num_rounds=rounds)
    _check(jobs)
    with progress("bench") as bar:
        found = run_plan(plan, out, bar.update)
    rows = summarize(found["records"])
    typer.echo(
        json.dumps({"settings": found["settings"], "models": rows}) if as_json else bench_table(plan.settings, rows)
    )


def _preset_names(models: str | None, has_directories: bool) -> list[str]:
    from edgevlm.profiling.presets import PRESETS

    if models is None:
        return [] if has_directories else list(PRESETS)
    return [name.strip() for name in models.split(",") if name.strip()]


def _batch_sizes(text: str) -> tuple[int, ...]:
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isascii() and part.isdigit() and len(part) < 7 for part in parts):
        raise BenchError(f"batch: expected numbers by commas such as 1,8, got {text!r}")
    return tuple(int(part) for part in parts)


def _device(name: str) -> str:
    import torch

    has_cuda = torch.cuda.is_available()
    if name not in ("auto", "cpu", "cuda") or (name == "cuda" and not has_cuda):
        raise BenchError(f"device: expected auto, cpu{' or cuda' if has_cuda else ''}, got {name!r}")
    return name if name != "auto" else "cuda" if has_cuda else "cpu"


def _check(jobs: list["BenchJob"]) -> None:
    """Finds what cannot run before hours are spent on the rest."""
    from edgevlm.benching.jobs import job_config
    from edgevlm.profiling.layouts import ImageSize, visual_layout

    for job in jobs:
        visual_layout(job_config(job), ImageSize.parse(job.image))


def _save(jobs: list["BenchJob"], directory: Path) -> None:
    import torch
    from transformers.utils import logging as transformers_logging

    from edgevlm.benching.jobs import job_config
    from edgevlm.benching.random_weights import random_model
    from vlmpress.artifact import whole_directory

    if len(jobs) != 1:
        raise BenchError(f"save: expected one model, got {len(jobs)}")
    if jobs[0].is_directory and not jobs[0].random_weights:
        raise BenchError(f"save: expected a preset, or a directory with --random-weights, got {jobs[0].model}")
    if directory.exists():
        raise BenchError(f"{directory}: expected a new directory, found one")
    transformers_logging.disable_progress_bar()
    model = random_model(job_config(jobs[0]), dtype=getattr(torch, jobs[0].dtype))
    with whole_directory(directory) as draft:
        model.save_pretrained(draft, max_shard_size="1GB")
    typer.echo(f"{directory}: {sum(parameter.numel() for parameter in model.parameters()):,} random weights")
