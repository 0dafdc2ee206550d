from pathlib import Path
from typing import Annotated

import pytest
import typer
from typer.testing import CliRunner

from vlmpress_services.clients import Connection
from vlmpress_services.clients.options import connected
from vlmpress_services.errors import InvalidRequestError

app = typer.Typer()
asked: list[tuple[str, bool, Connection]] = []


@app.command()
@connected
def ask(
    what: Annotated[str, typer.Argument(help="A word.")],
    connection: Connection,
    loud: Annotated[bool, typer.Option("--loud")] = False,
) -> None:
    """Asks."""
    asked.append((what, loud, connection))


@pytest.fixture(autouse=True)
def nothing_set(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("SERVER", "TOKEN", "TOKEN_FILE", "CA", "CERT", "KEY"):
        monkeypatch.delenv(f"VLMPRESS_{name}", raising=False)


def run(*arguments: str) -> tuple[str, bool, Connection]:
    result = CliRunner().invoke(app, arguments, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return asked.pop()


def test_a_command_gets_its_connection_and_its_own_options(tmp_path: Path) -> None:
    assert run("it", "--server", "localhost:5") == ("it", False, Connection(address="localhost:5"))
    (tmp_path / "token").write_text("secret\n")
    pem = tmp_path / "pem"
    options = ["--token-file", str(tmp_path / "token"), "--ca", str(pem), "--cert", str(pem), "--key", str(pem)]
    assert run("it", "--loud", "--server", "far.example:5", *options) == (
        "it",
        True,
        Connection(address="far.example:5", token="secret", ca=pem, cert=pem, key=pem),
    )


def test_the_environment_is_the_default(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VLMPRESS_SERVER", "localhost:6")
    monkeypatch.setenv("VLMPRESS_TOKEN", "secret")
    assert run("it")[2] == Connection(address="localhost:6", token="secret")
    assert run("it", "--server", "localhost:7")[2].address == "localhost:7"


def test_no_server_is_an_error_in_one_line() -> None:
    with pytest.raises(InvalidRequestError, match=r"^server: expected an address \(--server or VLMPRESS_SERVER\)"):
        CliRunner().invoke(app, ["it"], catch_exceptions=False)


def test_help_names_them_once() -> None:
    text = CliRunner().invoke(app, ["--help"]).output
    assert [text.count(f"{option} ") for option in ("--server", "--token-file", "--ca", "--cert", "--key")] == [1] * 5
    assert "connection" not in text
