import pytest

import vlmpress.cli
from stagetrain import StageTrainError
from stagetrain.cli import app
from vlmpress.data import DataError


def call(*arguments: object) -> int:
    return vlmpress.cli.run(app, (StageTrainError, DataError), [str(argument) for argument in arguments])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["schemes", "--unknown"], "--unknown"),
        (["train"], "Missing argument"),
    ],
)
def test_bad_usage(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert call(*arguments) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
