"""`vlmpress serve` and `vlmpress token`."""

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Annotated, Any

import typer

tokens_app = typer.Typer(no_args_is_help=True, help="Bearer tokens of a server.")


def serve(
    config: Annotated[Path | None, typer.Option(help="YAML file; environment and options go before it.")] = None,
    check_config: Annotated[
        bool, typer.Option("--check-config", help="Show the configuration that would hold, and end.")
    ] = False,
    listen: Annotated[str | None, typer.Option(help="HOST:PORT; port 0 takes a free one. [127.0.0.1:0]")] = None,
    store: Annotated[str | None, typer.Option(help="Root of the artifact store.")] = None,
    services: Annotated[str | None, typer.Option(help="all, or a comma-separated list; exactly these. [all]")] = None,
    max_concurrent: Annotated[int | None, typer.Option(help="Calls that may run at a time. [64]")] = None,
    max_batch: Annotated[int | None, typer.Option(help="Answers that one model works on at a time. [64]")] = None,
    reflection: Annotated[bool | None, typer.Option(help="By default only on a loopback address.")] = None,
    tls_cert: Annotated[Path | None, typer.Option(help="PEM certificate of the server.")] = None,
    tls_key: Annotated[Path | None, typer.Option(help="PEM key of the certificate.")] = None,
    client_ca: Annotated[Path | None, typer.Option(help="PEM; clients need a certificate signed by it.")] = None,
    tokens: Annotated[Path | None, typer.Option(help="File of bearer tokens; clients need one of them.")] = None,
    insecure: Annotated[
        bool, typer.Option("--insecure", help="Other machines may call without encryption or access control.")
    ] = False,
    metrics: Annotated[str | None, typer.Option(help="PORT or HOST:PORT for Prometheus. [none]")] = None,
    log_format: Annotated[str | None, typer.Option(help="json or text. [json]")] = None,
    grace_s: Annotated[float | None, typer.Option(help="Seconds for running calls at the end. [5]")] = None,
    exit_with_stdin: Annotated[bool, typer.Option("--exit-with-stdin", help="Stop when standard input ends.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", help="Log warnings and errors only.")] = False,
) -> None:
    """Serves the store's artifacts, models and jobs over gRPC until SIGTERM.

    One JSON line {"address": ..., "services": [...]} on standard output says that the server answers.
    """
    from vlmpress_services.serving.config_sources import load_config, shown
    from vlmpress_services.serving.process import check
    from vlmpress_services.serving.process import serve as serve_until_stopped

    tls = _given(cert=tls_cert, key=tls_key, client_ca=client_ca)
    flags = _given(
        listen=listen,
        store=store,
        services=services,
        max_concurrent=max_concurrent,
        max_batch=max_batch,
        reflection=reflection,
        tls=tls or None,
        tokens=tokens,
        insecure=insecure or None,
        metrics=metrics,
        log_format=log_format,
        grace_s=grace_s,
    )
    effective = load_config(flags, config)
    check(effective)
    if check_config:
        typer.echo(shown(effective), nl=False)
        return
    serve_until_stopped(effective, exit_with_stdin=exit_with_stdin, quiet=quiet)


@tokens_app.command("new")
def new_token(
    name: Annotated[str, typer.Argument(help="Of whoever gets it, as in the server's log.")],
    file: Annotated[Path, typer.Option(help="The server's file of tokens; made if need be.")],
    scope: Annotated[list[str], typer.Option(help="*, SERVICE, or either with :read; several times if need be.")],
    days: Annotated[float | None, typer.Option(help="How long it holds. [for ever]")] = None,
) -> None:
    """Makes a token, prints it once, and adds its hash to the file; a running server sees it at its next call."""
    from vlmpress_services.serving.tokens import add_token

    expires = None if days is None else datetime.now(UTC).replace(microsecond=0) + timedelta(days=days)
    typer.echo(add_token(file, name, scope, expires))


def _given(**options: Any) -> dict[str, Any]:
    return {name: value for name, value in options.items() if value is not None}
