"""Commands against a server that asks for certificates and tokens."""

import asyncio
import hashlib
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import yaml

from vlmpress_services import cli
from vlmpress_services.clients import Connection, JobClient, aio
from vlmpress_services.errors import ServiceError
from vlmpress_services.serving.configuration import TlsConfig
from vlmpress_services.serving.server import Server, ServerConfig


@pytest.fixture
async def secured(store: Any, pem: Any, tmp_path: Path) -> Any:
    """The address of a server for clients with a certificate and one of the tokens all, reads and over."""

    def token(name: str, scope: str, hours: int) -> dict[str, Any]:
        expires = datetime.now(UTC) + timedelta(hours=hours)
        sha256 = hashlib.sha256(f"secret-{name}".encode()).hexdigest()
        return {"name": name, "sha256": sha256, "scopes": [scope], "expires": expires}

    tokens = tmp_path / "tokens.yaml"
    tokens.write_text(yaml.safe_dump([token("all", "*", 1), token("reads", "job:read", 1), token("over", "*", -1)]))
    tls = TlsConfig(cert=pem.server_cert, key=pem.server_key, client_ca=pem.ca)
    services = ("artifact", "job")
    config = ServerConfig(listen="127.0.0.1:0", store=store.root, services=services, tls=tls, tokens=tokens)
    server = Server(config)
    await server.start()
    yield server.address
    await server.stop(0.2)


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], secured: str, pem: Any) -> Any:
    """Runs a command with the certificate and a token; gives exit code, output and errors."""

    async def run(token: str, *arguments: str) -> tuple[int, str, str]:
        monkeypatch.setenv("VLMPRESS_TOKEN", f"secret-{token}")
        options = ("--server", secured, "--ca", str(pem.ca), "--cert", str(pem.cert), "--key", str(pem.key))
        monkeypatch.setattr("sys.argv", ["vlmpress", *arguments, *options])
        code = await asyncio.to_thread(cli.main)
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return run


async def test_a_token_opens_what_its_scope_says(command: Any, add_log: Any, tmp_path: Path) -> None:
    log = add_log().digest
    target = ("--store", str(tmp_path / "here"))
    assert await command("all", "job", "list", "--json") == (0, '{"jobs": []}\n', "")
    code, out, _ = await command("all", "artifact", "pull", log, *target)
    assert (code, out) == (0, f"{log}\n")
    assert (await command("reads", "job", "list"))[0] == 0
    code, _, errors = await command("reads", "job", "cancel", "0" * 32)
    assert code == 2
    assert "PERMISSION_DENIED" in errors
    for token in ("over", "unknown"):
        code, _, errors = await command(token, "job", "list")
        assert code == 2
        assert "UNAUTHENTICATED" in errors
        assert "secret" not in errors


@pytest.mark.parametrize("library", ["sync", "aio"])
async def test_what_is_refused_is_typed(secured: str, pem: Any, library: str) -> None:
    async def ask(connection: Connection) -> Any:
        if library == "aio":
            async with aio.JobClient(connection) as client:
                return await client.get("0" * 32)
        with JobClient(connection) as sync:
            return await asyncio.to_thread(sync.get, "0" * 32)

    files: Any = {"address": secured, "ca": pem.ca, "cert": pem.cert, "key": pem.key}
    for token, code, reason in (
        ("secret-all", "NOT_FOUND", "NOT_FOUND"),
        ("", "UNAUTHENTICATED", "UNAUTHENTICATED"),
        ("secret-over", "UNAUTHENTICATED", "UNAUTHENTICATED"),
    ):
        with pytest.raises(ServiceError) as caught:
            await ask(Connection(**files, token=token))
        assert (caught.value.code, caught.value.reason) == (code, reason)
        assert caught.value.request_id
    for bare in (Connection(address=secured, token="secret-all"), Connection(address=secured, ca=pem.ca)):
        with pytest.raises(ServiceError, match="UNAVAILABLE"):
            await ask(bare)
