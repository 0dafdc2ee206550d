"""`vlmpress run`, `vlmpress demo` and `vlmpress pareto`."""

import shlex
import sys
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from rich.console import Console
from rich.table import Table

if TYPE_CHECKING:
    from vlmpress_services.pipeline.config import RunConfig

NEEDED = (
    "torch",
    "jinja2",
    "matplotlib",
    "pydantic",
    "yaml",
    "quantpack",
    "tokenreduce",
    "stagetrain",
    "verbdistill",
    "edgevlm",
)

RunnerName = Literal["auto", "ray", "local"]
Out = Annotated[Path | None, typer.Option(help="Folder of the report and the artifact store.")]
Seed = Annotated[int | None, typer.Option(help="Fixes data, weights and batches.")]
RunnerOption = Annotated[RunnerName | None, typer.Option(help="auto: Ray when it is installed.")]
Only = Annotated[Literal["teacher"] | None, typer.Option(help="End after this step and print its directory.")]


def register(app: typer.Typer) -> None:
    """Adds the commands.

    Raises:
        ImportError: A package the main job needs is not installed.
    """
    missing = [name for name in NEEDED if find_spec(name) is None]
    if missing:
        raise ImportError(f"not installed: {', '.join(missing)}")
    app.command()(run)
    app.command()(demo)
    app.command()(pareto)


def run(
    config: Annotated[Path, typer.Argument(help="YAML file; what it leaves out is as in the demo.")],
    out: Out = None,
    seed: Seed = None,
    runner: RunnerOption = None,
    only: Only = None,
) -> None:
    """Runs the main job: data, teacher, students, edge model, pack, evaluation, report."""
    from vlmpress_services.pipeline.config import read_config

    _run(read_config(config), out=out, seed=seed, runner=runner, only=only)


def demo(
    out: Out = None,
    seed: Seed = None,
    data: Annotated[
        Path | None, typer.Option(help="LLaVA JSON/JSONL, or JSONL of split, image, question, answer.")
    ] = None,
    images: Annotated[Path | None, typer.Option(help="Folder that image paths are relative to.")] = None,
    runner: RunnerOption = None,
    only: Only = None,
) -> None:
    """Runs the main job on drawn shapes, or on your data, in about ten minutes."""
    from vlmpress.cli import UserError
    from vlmpress_services.pipeline.config import DataConfig, RunConfig

    if images is not None and data is None:
        raise UserError("--images: expected --data beside it")
    config = RunConfig()
    if data is not None:
        config = replace(config, data=DataConfig(name=data.stem, file=data, images=images))
    _run(config, out=out, seed=seed, runner=runner, only=only)


def pareto(
    config: Annotated[Path, typer.Argument(help="YAML file: base, axes, combine, measure.")],
    as_json: Annotated[bool, typer.Option("--json", help="JSON on standard output.")] = False,
) -> None:
    """Makes variants of the main job, measures their models, and says which of them nothing beats."""
    from vlmpress_services.pipeline.pareto.config import read_pareto
    from vlmpress_services.pipeline.pareto.report import FIELDS, TABLE
    from vlmpress_services.pipeline.pareto.sweep import sweep

    def tell(share: float, note: str) -> None:
        # Plain lines: steps show bars of their own, and two live displays do not go together.
        typer.echo(f"{share:4.0%} {note}", err=True)

    report = sweep(read_pareto(config), str(config), tell)
    typer.echo((report.path / (FIELDS if as_json else TABLE)).read_text(encoding="utf-8"), nl=False)
    if not as_json:
        typer.echo(f"report: {report.path}")


def _run(config: "RunConfig", *, only: str | None, **overrides: Any) -> None:
    from vlmpress_services.pipeline.main_job import model_directory
    from vlmpress_services.pipeline.main_job import run as run_job

    config = replace(config, **{name: value for name, value in overrides.items() if value is not None})
    fields = run_job(config, shlex.join(["vlmpress", *sys.argv[1:]]), only)
    if fields is None:
        typer.echo(model_directory(config, str(only)))
        return
    _show(fields)
    typer.echo(f"report: {config.out / 'report.html'}")


def _show(fields: dict[str, Any]) -> None:
    table = Table(title=f"{fields['data']['name']}: question only {fields['data']['question_only_accuracy']:.3f}")
    for name in ("variant", "accuracy", "yes/no", "params", "kB", "tokens", "TTFT ms"):
        table.add_column(name, justify="left" if name == "variant" else "right", no_wrap=True)
    for variant in fields["variants"]:
        table.add_row(
            variant["name"],
            f"{variant['accuracy']:.3f}",
            f"{variant['accuracy_by_type'].get('yes/no', float('nan')):.3f}",
            f"{variant['params']:,}",
            f"{variant['bytes_on_disk'] / 1e3:.1f}",
            f"{variant['visual_tokens_mean']:.1f}",
            f"{variant['ttft_ms']['median']:.1f}",
        )
    Console().print(table)
