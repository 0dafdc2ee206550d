"""The command `edgevlm`."""

import typer

import vlmpress.cli
from edgevlm.cli_bench import bench
from edgevlm.cli_build import build
from edgevlm.cli_chat import chat
from edgevlm.cli_profile import profile
from edgevlm.errors import EdgeVlmError
from vlmpress.artifact import ArtifactError

app = typer.Typer(no_args_is_help=True, add_completion=False, help="Build, inspect and question edge VLMs.")
app.command()(build)
app.command()(chat)
app.command()(profile)
app.command()(bench)


def main() -> int:
    """Runs the command; gives its exit code."""
    return vlmpress.cli.run(app, (EdgeVlmError, ArtifactError))
