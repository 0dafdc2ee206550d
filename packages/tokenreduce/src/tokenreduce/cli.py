"""The command `tokenreduce`."""

import typer

import vlmpress.cli
from tokenreduce.cli_bench import bench
from tokenreduce.cli_calibrate import calibrate
from tokenreduce.cli_plan import plan
from tokenreduce.cli_plot import plot
from tokenreduce.errors import TokenReduceError
from vlmpress.artifact import ArtifactError
from vlmpress.data import DataError

app = typer.Typer(no_args_is_help=True, add_completion=False, help="Fewer visual tokens where an image says little.")
for _command in (plan, calibrate, bench, plot):
    app.command(_command.__name__)(_command)

USER_ERRORS = (TokenReduceError, ArtifactError, DataError)


def main() -> int:
    """Runs the command and gives its exit code."""
    return vlmpress.cli.run(app, USER_ERRORS)
