"""Runs a typer application: one line and an exit code for every error, a traceback only with --debug."""

import errno
import logging
import os
import sys
from collections.abc import Sequence

import typer

from vlmpress.cli.errors import CheckFailedError, UserError


def run(app: typer.Typer, user_errors: tuple[type[Exception], ...] = (), argv: Sequence[str] | None = None) -> int:
    """Runs `app` and gives its exit code.

    0: done. 1: a check found a fault (CheckFailedError). 2: bad usage, bad input, a full disk: one
    line on standard error says what, where and what was expected. 130: interrupted.

    Args:
        app: The command.
        user_errors: Base classes of the errors that mean bad input, beside UserError and OSError.
        argv: Arguments without the program's name; by default the process's own. `--debug` is taken
            out wherever it stands, and lets errors show their traceback.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    debug = "--debug" in arguments
    arguments = [argument for argument in arguments if argument != "--debug"]
    # Libraries warn about things a user of a command cannot act on.
    logging.basicConfig(level=logging.DEBUG if debug else logging.WARNING, stream=sys.stderr)
    try:
        result = typer.main.get_command(app).main(arguments, standalone_mode=False)
        return result if isinstance(result, int) else 0
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        # The reader of our output has gone; nothing more can be said to it.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except Exception as error:
        if debug:
            raise
        code, message = _explain(error, (*user_errors, UserError, OSError))
        print(f"error: {' '.join(message.split())}", file=sys.stderr)
        return code


def _explain(error: Exception, user_errors: tuple[type[Exception], ...]) -> tuple[int, str]:
    if isinstance(error, CheckFailedError):
        return 1, str(error)
    if isinstance(error, typer.Abort):
        return 130, "interrupted"
    if isinstance(error, typer.TyperException):
        return 2, error.format_message()
    if isinstance(error, OSError) and error.errno == errno.ENOSPC:
        return 2, f"{error.filename or 'disk'}: no space left; nothing half-written is kept"
    if isinstance(error, user_errors):
        return 2, str(error)
    return 2, f"unexpected {type(error).__name__}: {error} (run again with --debug for details)"
