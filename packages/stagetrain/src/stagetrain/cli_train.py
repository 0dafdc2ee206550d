"""The command `stagetrain train`."""

import json
import os
from contextlib import nullcontext
from typing import TYPE_CHECKING, Annotated, Any

import typer

from stagetrain.runs.config_file import preset_names
from vlmpress.cli import progress

if TYPE_CHECKING:
    from stagetrain.runs.running import PreparedRun

_LOSSES_AT_THE_END = 20


def train(
    config: Annotated[str, typer.Argument(help=f"YAML file, or a preset: {', '.join(preset_names())}.")],
    overrides: Annotated[list[str] | None, typer.Argument(help="key=value: training.max_steps=100 ...")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="End with a JSON object; all else on stderr.")] = False,
) -> None:
    """Trains a model in stages, as a file says."""
    # Checked before a model is loaded, so that a typing error shows at once.
    from stagetrain.runs.run_config import read_run_config

    settings = read_run_config(config, overrides or [])
    if settings.out.exists():
        raise settings.places.error(("out",), f"expected a path that does not exist yet, got {settings.out}")
    from stagetrain.loop.checkpoints import list_checkpoints
    from stagetrain.runs.running import execute, prepare

    run = prepare(settings)
    first = int(os.environ.get("RANK", "0")) == 0
    if first:
        typer.echo(_told(run), err=as_json)
    try:
        with progress(f"train {run.schedule.name}") if first else nullcontext() as bar:
            result = execute(run, bar.update if bar is not None else None)
    except KeyboardInterrupt:
        if first:
            kept = list_checkpoints(settings.checkpoint_dir)
            where = f"goes on from {kept[0]}" if kept else "begins again: no checkpoint was written yet"
            typer.echo(f"interrupted; the same command {where}", err=True)
        raise
    if not first:
        return
    tail = result.losses[-_LOSSES_AT_THE_END:]
    summary: dict[str, Any] = {
        "out": str(settings.out),
        "steps": result.num_steps,
        "loss": sum(tail) / len(tail),
        "resumed_from_step": result.resumed_from_step,
        "skipped": len(result.skipped),
        "tokens_per_second": result.tokens_per_second,
    }
    if as_json:
        typer.echo(json.dumps(summary))
        return
    typer.echo(
        f"{settings.out}: {result.num_steps} steps, loss {summary['loss']:.4f} nats, {len(result.skipped)} left out"
    )


def _told(run: "PreparedRun") -> str:
    """What will happen, stage by stage."""
    tokens = "no images" if run.num_visual_tokens is None else f"{run.num_visual_tokens} visual tokens an image"
    lines = [f"{run.config.model}: {len(run.samples)} samples, {tokens}, checkpoints in {run.args.output_dir}"]
    lines.append(
        f"{'stage':>5}{'steps':>9}{'compressor':>12}{'layer':>7}{'stride':>8}{'tokens':>9}{'CR %':>9}"
        f"{'trainable':>15}{'rate x':>10}{'samples':>9}"
    )
    for number, plan in enumerate(run.plan, 1):
        setting = plan.stage.compression
        place = ("-", "-", "-") if setting is None else (setting.compressor, str(setting.layer), str(setting.stride))
        tokens = "-" if plan.visual_tokens is None else str(plan.visual_tokens)
        ratio = "-" if plan.cr_percent is None else f"{plan.cr_percent:.2f}"
        lines.append(
            f"{number:>5}{plan.num_steps:>9}{place[0]:>12}{place[1]:>7}{place[2]:>8}{tokens:>9}{ratio:>9}"
            f"{plan.num_trainable:>15,}{plan.stage.learning_rate_scale:>10g}{plan.samples_per_step:>9}"
        )
    return "\n".join(lines)
