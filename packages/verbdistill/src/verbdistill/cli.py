"""The command `verbdistill`."""

import dataclasses
import json
import os
from pathlib import Path
from typing import Annotated

import typer

from verbdistill import cli_seeing
from verbdistill.errors import VerbDistillError
from vlmpress.artifact import ArtifactError
from vlmpress.cli import progress
from vlmpress.cli import run as run_app
from vlmpress.data import DataError

app = typer.Typer(
    help="Layer-wise distillation of vision-language models (VLsI).", no_args_is_help=True, add_completion=False
)

cli_seeing.mount(app)

JsonFlag = Annotated[bool, typer.Option("--json", help="Print JSON for machines.")]


@app.command()
def run(
    config: Annotated[Path, typer.Argument(help="YAML file: teacher, student, data, out, distill, ...")],
    as_json: JsonFlag = False,
) -> None:
    """Distils a teacher into a student as a YAML file says."""
    # Checked before models are loaded, so that a typing error shows at once.
    from verbdistill.runs.run_config import read_run_config

    settings = read_run_config(config)
    from transformers.utils.logging import disable_progress_bar

    from verbdistill.runs.running import run as distil

    disable_progress_bar()
    with progress("distilling") as bar:

        def show(phase: str, done: int, _of: int, loss: float) -> None:
            bar.update(*settings.distill.overall(phase, done), f"{phase} {loss:.3f}")

        # Of processes that torchrun started the first one speaks.
        artifact, result = distil(settings, show if os.environ.get("RANK", "0") == "0" else None)
    last = {name: values[-1] for name, values in result.losses.items() if values}
    if artifact is None:
        return
    if as_json:
        print(json.dumps({"out": str(artifact.path), "digest": artifact.digest, "last_losses_nats": last}))
        return
    print(f"{artifact.path}: {artifact.digest}")
    for name, value in last.items():
        print(f"  {name}: {value:.4f} nats at the end")


@app.command()
def bench(
    config: Annotated[Path, typer.Argument(help="YAML file of `verbdistill run`.")],
    steps: Annotated[int, typer.Option(help="Optimizer steps timed at once.", min=1)] = 3,
    as_json: JsonFlag = False,
) -> None:
    """Times an interaction step of a run on this machine against one that compares the last layer alone."""
    from verbdistill.runs.run_config import read_run_config

    settings = read_run_config(config)
    from transformers.utils.logging import disable_progress_bar

    from verbdistill.runs.running import bench as time_steps

    disable_progress_bar()
    times = time_steps(settings, steps)
    if as_json:
        print(json.dumps({**dataclasses.asdict(times), "ratio": times.ratio}))
        return
    print(f"response tokens: {times.response_share:.0%} of all")
    print(f"last layer alone: {times.last_layer_ms:.1f} ms a step")
    print(f"interaction:      {times.interaction_ms:.1f} ms a step, {times.ratio:.2f} times as long")


@app.command()
def match(
    kld: Annotated[Path, typer.Option(help="KL matrix [t_s, t_l] in nats: JSON list of rows, or safetensors 'kld'.")],
    scale: Annotated[float, typer.Option(help="Scale of the adaptive temperature.")] = 2.0,
    seed: Annotated[int, typer.Option(help="Seed of the draw.", min=0)] = 0,
    as_json: JsonFlag = False,
) -> None:
    """Draws one teacher target for each student target (Algorithm 1)."""
    import torch

    from verbdistill.matching.matching import match_layers
    from verbdistill.matching.matrix_file import read_matrix

    matrix = read_matrix(kld)
    matches = match_layers(matrix, scale=scale, generator=torch.Generator().manual_seed(seed))
    if as_json:
        print(json.dumps({"teacher_targets": matches, "seed": seed, "scale": scale}))
        return
    for target, drawn in enumerate(matches):
        print(f"student target {target} <- teacher target {drawn} ({matrix[target, drawn]:.4f} nats)")


def main() -> int:
    """Entry point; gives the exit code."""
    return run_app(app, (VerbDistillError, ArtifactError, DataError))
