"""The `vlmpress` command."""

import logging
import sys
from pathlib import Path
from typing import Annotated

import typer

from vlmpress import cli
from vlmpress.artifact import ArtifactError
from vlmpress.cli import UserError
from vlmpress.data import DataError
from vlmpress_services.errors import PackageError, ServicesError
from vlmpress_services.jobs import commands as job_commands
from vlmpress_services.store import commands as artifact_commands
from vlmpress_services.store.commands import DEFAULT_STORE

app = typer.Typer(no_args_is_help=True, help="Small fast vision-language models from large ones.")
app.add_typer(artifact_commands.app, name="artifact")
app.add_typer(job_commands.app, name="job")


@app.command()
def serve(
    listen: Annotated[str, typer.Option(help="HOST:PORT; port 0 takes a free one.")] = "127.0.0.1:0",
    store: Annotated[Path, typer.Option(help="Root of the artifact store.")] = DEFAULT_STORE,
    services: Annotated[str, typer.Option(help="all, or a comma-separated list; exactly these are hosted.")] = "all",
    max_concurrent: Annotated[int, typer.Option(min=1, help="Calls that may run at a time.")] = 64,
    max_batch: Annotated[int, typer.Option(min=1, help="Answers that one model works on at a time.")] = 64,
    reflection: Annotated[bool | None, typer.Option(help="By default only on a loopback address.")] = None,
    exit_with_stdin: Annotated[bool, typer.Option("--exit-with-stdin", help="Stop when standard input ends.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", help="Log warnings and errors only.")] = False,
) -> None:
    """Serves the store's artifacts, models and jobs over gRPC until SIGTERM.

    One JSON line {"address": ..., "services": [...]} on standard output says that the server answers.
    """
    from vlmpress_services.serving.process import serve as serve_until_stopped
    from vlmpress_services.serving.registry import parse_services
    from vlmpress_services.serving.server import ServerConfig

    logging.getLogger("vlmpress_services").setLevel(logging.WARNING if quiet else logging.INFO)
    config = ServerConfig(
        listen=listen,
        store=store,
        services=parse_services(services),
        max_concurrent=max_concurrent,
        max_batch=max_batch,
        reflection=reflection,
    )
    store.mkdir(parents=True, exist_ok=True)
    serve_until_stopped(config, exit_with_stdin=exit_with_stdin)


def _missing_pipeline() -> None:
    raise UserError("this command needs the main job: pip install 'vlmpress-services[pipeline]'")


def _add_pipeline() -> None:
    try:
        from vlmpress_services.pipeline.commands import register

        register(app)
    except ImportError:
        for name in ("run", "demo"):
            settings = {"allow_extra_args": True, "ignore_unknown_options": True}
            app.command(name, context_settings=settings, help="Not installed: needs the extra [pipeline].")(
                _missing_pipeline
            )


def main() -> int:
    """Runs the command and gives its exit code."""
    _add_pipeline()
    return cli.run(app, (ServicesError, ArtifactError, DataError, PackageError))


if __name__ == "__main__":
    sys.exit(main())
