"""Runs a typer application: one line and an exit code for every error, a traceback only with --debug."""

import errno
import logging
import os
import sys
import traceback
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path

import typer

from vlmpress.cli.errors import CheckFailedError, UserError

FULL_DISK = "No space left on device"


def run(app: typer.Typer, user_errors: tuple[type[Exception], ...] = (), argv: Sequence[str] | None = None) -> int:
    """Runs `app` and gives its exit code.

    0: done. 1: a check found a fault (CheckFailedError). 2: bad usage, bad input, a full disk: one
    line on standard error says what, where and what was expected. 130: interrupted.

    Args:
        app: The command.
        user_errors: Base classes of the errors that mean bad input, beside UserError and OSError.
        argv: Arguments without the program's name; by default the process's own. `--debug` is taken
            out wherever it stands, and puts the traceback before an error's line.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    debug = "--debug" in arguments
    arguments = [argument for argument in arguments if argument != "--debug"]
    # Libraries warn about things a user of a command cannot act on.
    logging.basicConfig(level=logging.INFO if debug else logging.WARNING, stream=sys.stderr)
    try:
        code = _invoke(app, arguments)
        # A closed pipe or a full disk shows itself here at the latest, not in the interpreter's last flush.
        if sys.stdout is not None:
            sys.stdout.flush()
        return code
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        # The reader of our output has gone; nothing more can be said to it.
        _discard_output()
        return 0
    except Exception as error:
        if debug:
            traceback.print_exc()
        code, message = _explain(error, (*user_errors, UserError, OSError))
        print(f"error: {' '.join(message.split())}", file=sys.stderr)
        if isinstance(error, OSError) and error.errno == errno.ENOSPC:
            _discard_output()
        return code


def _invoke(app: typer.Typer, arguments: list[str]) -> int:
    try:
        result = typer.main.get_command(app).main(arguments, standalone_mode=False)
    except SystemExit as error:
        # typer ends the process by itself when the pipe is closed.
        if isinstance(error.__context__, BrokenPipeError):
            raise error.__context__ from None
        raise
    return result if isinstance(result, int) else 0


def _explain(error: Exception, user_errors: tuple[type[Exception], ...]) -> tuple[int, str]:
    if isinstance(error, CheckFailedError):
        return 1, str(error)
    if isinstance(error, typer.Abort):
        return 130, "interrupted"
    if isinstance(error, typer.TyperException):
        return 2, error.format_message() or "expected a command, got none; --help lists them"
    if any(_is_full_disk(each) for each in _chain(error)):
        return 2, f"{getattr(error, 'filename', None) or 'disk'}: no space left; nothing half-written is kept"
    if type(error).__module__ == "builtins" and isinstance(error, OSError) and error.filename is not None:
        return 2, f"{error.filename}: {error.strerror}"
    if isinstance(error, user_errors):
        return 2, str(error)
    return 2, f"unexpected {type(error).__name__}: {error} (run again with --debug for details)"


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _is_full_disk(error: BaseException) -> bool:
    """Also true for libraries in other languages, safetensors for one, that hand on the text alone."""
    return (isinstance(error, OSError) and error.errno == errno.ENOSPC) or FULL_DISK in str(error)


def _discard_output() -> None:
    with suppress(OSError, AttributeError), Path(os.devnull).open("wb") as nowhere:
        os.dup2(nowhere.fileno(), sys.stdout.fileno())
