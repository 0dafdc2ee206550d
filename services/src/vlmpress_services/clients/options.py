"""Options of every command that asks a server."""

import functools
import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer

from vlmpress_services.clients.connection import find_connection

_Server = Annotated[
    str | None, typer.Option("--server", metavar="HOST:PORT", help="Of the server; https:// before it for TLS.")
]
_Token = Annotated[Path | None, typer.Option("--token-file", help="File that holds the bearer token.")]
_Authority = Annotated[Path | None, typer.Option("--ca", help="PEM of who signed the server's certificate; TLS.")]
_Certificate = Annotated[Path | None, typer.Option("--cert", help="PEM of the client's certificate.")]
_Key = Annotated[Path | None, typer.Option("--key", help="PEM of the certificate's key.")]
_PARAMETERS = [
    inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, annotation=annotation, default=None)
    for name, annotation in (
        ("server", _Server),
        ("token_file", _Token),
        ("ca", _Authority),
        ("cert", _Certificate),
        ("key", _Key),
    )
]


def connected(command: Callable[..., None]) -> Callable[..., None]:
    """Replaces a command's parameter `connection` by --server, --token-file, --ca, --cert and --key.

    What is not given comes from the environment, as `find_connection` says.
    """
    signature = inspect.signature(command)
    kept = [parameter for name, parameter in signature.parameters.items() if name != "connection"]

    @functools.wraps(command)
    def run(**arguments: object) -> None:
        given = {parameter.name: arguments.pop(parameter.name) for parameter in _PARAMETERS}
        command(**arguments, connection=find_connection(given.pop("server"), **given))  # type: ignore[arg-type]

    # Typer reads both.
    run.__signature__ = signature.replace(parameters=[*kept, *_PARAMETERS])  # type: ignore[attr-defined]
    run.__annotations__ = {parameter.name: parameter.annotation for parameter in (*kept, *_PARAMETERS)}
    return run
