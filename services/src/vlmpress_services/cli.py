"""The `vlmpress` command."""

import sys

import typer

from vlmpress import cli
from vlmpress.cli import UserError
from vlmpress_services.errors import EXPECTED
from vlmpress_services.jobs import commands as job_commands
from vlmpress_services.serving import commands as serving_commands
from vlmpress_services.store import commands as artifact_commands

app = typer.Typer(no_args_is_help=True, help="Small fast vision-language models from large ones.")
app.add_typer(artifact_commands.app, name="artifact")
app.add_typer(job_commands.app, name="job")
app.add_typer(serving_commands.tokens_app, name="token")
app.command()(serving_commands.serve)


def _missing_pipeline() -> None:
    raise UserError("this command needs the main job: pip install 'vlmpress-services[pipeline]'")


def _add_pipeline() -> None:
    try:
        from vlmpress_services.pipeline.commands import register

        register(app)
    except ImportError:
        for name in ("run", "demo", "pareto"):
            settings = {"allow_extra_args": True, "ignore_unknown_options": True}
            app.command(name, context_settings=settings, help="Not installed: needs the extra [pipeline].")(
                _missing_pipeline
            )


def main() -> int:
    """Runs the command and gives its exit code."""
    _add_pipeline()
    return cli.run(app, EXPECTED)


if __name__ == "__main__":
    sys.exit(main())
