"""The command `stagetrain`."""

import sys

import typer

import vlmpress.cli
from stagetrain.cli_assess import assess
from stagetrain.cli_bench import bench
from stagetrain.cli_schemes import schemes
from stagetrain.cli_train import train
from stagetrain.errors import StageTrainError
from vlmpress.data import DataError

app = typer.Typer(help="Trains vision-language models with visual tokens pooled stage by stage.", no_args_is_help=True)
app.command()(assess)
app.command()(bench)
app.command()(schemes)
app.command()(train)


def main() -> int:
    """Runs the command and gives its exit code."""
    return vlmpress.cli.run(app, (StageTrainError, DataError))


if __name__ == "__main__":  # torchrun -m stagetrain.cli
    sys.exit(main())
