"""How a command ends: exit code, one line, no traceback."""

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest
import typer

from vlmpress.cli import CheckFailedError, UserError, run

COMMAND = """
import sys, typer
from vlmpress.cli import run
app = typer.Typer()
@app.command()
def say(times: int):
    for number in range(times):
        typer.echo(f"line {number}")
sys.exit(run(app))
"""


class PackageError(Exception):
    pass


class LeafError(PackageError, ValueError):
    pass


def app_raising(error: BaseException) -> typer.Typer:
    app = typer.Typer(no_args_is_help=True)

    @app.command()
    def go(count: int = 0) -> None:
        raise error

    @app.command()
    def fine() -> int:
        return 3 if "--debug" in sys.argv else 0

    return app


def ending(capsys: pytest.CaptureFixture[str], error: BaseException, *arguments: str) -> tuple[int, str]:
    code = run(app_raising(error), (PackageError,), arguments or ["go"])
    return code, capsys.readouterr().err


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (CheckFailedError("a: expected 1, got 2"), 1, "error: a: expected 1, got 2\n"),
        (UserError("a:\n  expected b"), 2, "error: a: expected b\n"),
        (LeafError("pack: expected c"), 2, "error: pack: expected c\n"),
        (
            FileNotFoundError(errno.ENOENT, "No such file or directory", "x.json"),
            2,
            "error: x.json: No such file or directory\n",
        ),
        (OSError("odd"), 2, "error: odd\n"),
        (
            OSError(errno.ENOSPC, "No space left on device", "out"),
            2,
            "error: out: no space left; nothing half-written is kept\n",
        ),
        (
            RuntimeError("Error while serializing: I/O error: No space left on device (os error 28)"),
            2,
            "error: disk: no space left; nothing half-written is kept\n",
        ),
        (IndexError("7"), 2, "error: unexpected IndexError: 7 (run again with --debug for details)\n"),
    ],
)
def test_an_error_is_one_line_and_a_code(
    capsys: pytest.CaptureFixture[str], error: Exception, code: int, line: str
) -> None:
    assert ending(capsys, error) == (code, line)


def test_a_full_disk_behind_another_error(capsys: pytest.CaptureFixture[str]) -> None:
    error = LeafError("cannot write")
    error.__cause__ = OSError(errno.ENOSPC, "No space left on device")
    assert ending(capsys, error) == (2, "error: disk: no space left; nothing half-written is kept\n")


def test_interruption() -> None:
    assert run(app_raising(KeyboardInterrupt()), argv=["go"]) == 130
    assert run(app_raising(typer.Abort()), argv=["go"]) == 130
    assert run(app_raising(typer.Exit(1)), argv=["go"]) == 1


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        (["nope"], "No such command 'nope'"),
        (["go", "--nope"], "No such option: --nope"),
        (["go", "--count", "x"], "Invalid value for '--count'"),
        (["go", "extra"], "unexpected extra argument"),
    ],
)
def test_bad_usage_is_one_line_and_2(capsys: pytest.CaptureFixture[str], arguments: list[str], part: str) -> None:
    code, text = ending(capsys, ValueError(), *arguments)
    assert code == 2
    assert part in text
    assert text.startswith("error: ")
    assert text.count("\n") == 1


def test_no_command_shows_the_help_and_fails(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(app_raising(ValueError()), argv=[]) == 2
    shown = capsys.readouterr()
    assert "Usage" in shown.out
    assert shown.err == "error: expected a command, got none; --help lists them\n"


def test_help_is_no_error(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(app_raising(ValueError()), argv=["--help"]) == 0
    assert "Usage" in capsys.readouterr().out


@pytest.mark.parametrize("arguments", [["--debug", "go"], ["go", "--debug"]])
def test_debug_adds_the_traceback_and_keeps_the_code(capsys: pytest.CaptureFixture[str], arguments: list[str]) -> None:
    code, text = ending(capsys, CheckFailedError("found"), *arguments)
    assert code == 1
    assert text.startswith("Traceback (most recent call last):")
    assert text.endswith("error: found\n")


def test_a_result_is_the_code() -> None:
    assert run(app_raising(ValueError()), argv=["fine"]) == 0


def test_arguments_of_the_process_are_the_default(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["program", "fine"])
    assert run(app_raising(ValueError())) == 0


@pytest.mark.parametrize("times", ["1", "100000"])
def test_a_reader_that_goes_away_is_no_error(times: str) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    done = subprocess.run([sys.executable, "-c", COMMAND, times], stdout=writing, stderr=subprocess.PIPE, text=True)
    os.close(writing)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no device that is always full")
@pytest.mark.parametrize("times", ["1", "100000"])
def test_output_onto_a_full_disk_is_one_line(times: str) -> None:
    with Path("/dev/full").open("w") as full:
        done = subprocess.run([sys.executable, "-c", COMMAND, times], stdout=full, stderr=subprocess.PIPE, text=True)
    assert (done.returncode, done.stderr) == (2, "error: disk: no space left; nothing half-written is kept\n")


def test_standard_output_may_be_closed() -> None:
    line = f"exec {sys.executable} -c '{COMMAND}' 1 >&-"
    done = subprocess.run(["sh", "-c", line], stderr=subprocess.PIPE, text=True)
    assert (done.returncode, done.stderr) == (0, "")
