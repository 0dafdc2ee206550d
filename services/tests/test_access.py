"""TLS, certificates of clients, bearer tokens and their scopes: what is refused has done nothing."""

import asyncio
import ssl
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import grpc
import pytest
import trustme
from google.rpc import error_details_pb2, status_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc

from vlmpress_services import cli, evaluation_service
from vlmpress_services.errors import InvalidRequestError, UnauthenticatedError
from vlmpress_services.serving.configuration import TlsConfig
from vlmpress_services.serving.failures import DETAILS_KEY
from vlmpress_services.serving.methods import SERVICES, Method, methods_of
from vlmpress_services.serving.server import Server, ServerConfig
from vlmpress_services.serving.tls import server_credentials
from vlmpress_services.serving.tokens import Token, TokenFile, add_token, hash_of, read_tokens

SCORE = "/vlmpress.evaluation.v1.EvaluationService/ScorePredictions"
SET_TAG = "/vlmpress.artifact.v1.ArtifactService/SetTag"
LIST = "/vlmpress.artifact.v1.ArtifactService/ListArtifacts"
TIMEOUT_S = 10


@pytest.fixture(scope="module")
def pems(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Files of a CA, a server's and a client's certificate, and another CA with a client of its own."""
    folder = tmp_path_factory.mktemp("pems")
    found = SimpleNamespace(folder=folder)
    for prefix in ("", "other_"):
        ca = trustme.CA()
        setattr(found, f"{prefix}ca", folder / f"{prefix}ca.pem")
        ca.cert_pem.write_to_path(folder / f"{prefix}ca.pem")
        for name, identity in (("server", "127.0.0.1"), ("client", "reader@example.org")):
            leaf = ca.issue_cert(identity, common_name=name)
            for part, pem in (("cert", leaf.cert_chain_pems[0]), ("key", leaf.private_key_pem)):
                path = folder / f"{prefix}{name}.{part}.pem"
                pem.write_to_path(path)
                setattr(found, f"{prefix}{name}_{part}", path)
    return found


def channel_credentials(pems: Any, client: str = "", ca: str = "ca") -> grpc.ChannelCredentials:
    pair = {}
    if client:
        pair = {
            "private_key": getattr(pems, f"{client}_key").read_bytes(),
            "certificate_chain": getattr(pems, f"{client}_cert").read_bytes(),
        }
    return grpc.ssl_channel_credentials(getattr(pems, ca).read_bytes(), **pair)


async def answer(channel: grpc.aio.Channel, method: str = SCORE, token: str | None = None) -> Any:
    """Code, reason and text of a call with an empty request."""
    metadata = () if token is None else (("authorization", token),)
    try:
        await channel.unary_unary(method)(b"", metadata=metadata, timeout=TIMEOUT_S)
    except grpc.aio.AioRpcError as error:
        data = dict(error.trailing_metadata() or ()).get(DETAILS_KEY)
        info = error_details_pb2.ErrorInfo()
        if data is not None:
            status_pb2.Status.FromString(data).details[0].Unpack(info)
        return error.code(), info.reason, error.details()
    return grpc.StatusCode.OK, "", ""


async def health(channel: grpc.aio.Channel) -> Any:
    request = health_pb2.HealthCheckRequest()
    return (await health_pb2_grpc.HealthStub(channel).Check(request, timeout=TIMEOUT_S)).status


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Grows by one for each call that reaches the evaluation service."""
    seen: list[Any] = []

    async def note(_: Any, request: Any, context: Any) -> Any:
        seen.append(request)
        raise InvalidRequestError("reached")

    monkeypatch.setattr(evaluation_service.EvaluationService, "ScorePredictions", note)
    return seen


async def test_tls_takes_those_who_know_the_ca_and_no_plaintext(store: Any, pems: Any, calls: list[Any]) -> None:
    tls = TlsConfig(cert=pems.server_cert, key=pems.server_key)
    server = Server(ServerConfig(listen="127.0.0.1:0", store=store.root, services=("evaluation",), tls=tls))
    await server.start()
    try:
        async with grpc.aio.secure_channel(server.address, channel_credentials(pems)) as channel:
            assert await health(channel) == health_pb2.HealthCheckResponse.SERVING
            assert (await answer(channel))[2] == "reached"
        assert len(calls) == 1
        async with grpc.aio.insecure_channel(server.address) as channel:
            assert (await answer(channel))[0] is grpc.StatusCode.UNAVAILABLE
        async with grpc.aio.secure_channel(server.address, channel_credentials(pems, ca="other_ca")) as channel:
            assert (await answer(channel))[0] is grpc.StatusCode.UNAVAILABLE
        assert len(calls) == 1
    finally:
        await server.stop(0)


async def test_without_a_clients_certificate_no_call(
    store: Any, pems: Any, calls: list[Any], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "vlmpress_services")
    tls = TlsConfig(cert=pems.server_cert, key=pems.server_key, client_ca=pems.ca)
    server = Server(ServerConfig(listen="127.0.0.1:0", store=store.root, services=("evaluation",), tls=tls))
    await server.start()
    try:
        for client in ("", "other_client"):
            async with grpc.aio.secure_channel(server.address, channel_credentials(pems, client)) as channel:
                assert (await answer(channel))[0] is grpc.StatusCode.UNAVAILABLE
                with pytest.raises(grpc.aio.AioRpcError):
                    await health(channel)
        assert calls == []
        async with grpc.aio.secure_channel(server.address, channel_credentials(pems, "client")) as channel:
            assert (await answer(channel))[2] == "reached"
        assert [record.fields["principal"] for record in caplog.records if "access" in record.name] == ["client"]
    finally:
        await server.stop(0)


def copied(pems: Any, folder: Path, client_ca: Path | None = None) -> TlsConfig:
    """A server's files that a test may change."""
    tls = TlsConfig(cert=folder / "cert.pem", key=folder / "key.pem", client_ca=client_ca)
    for ours, given in ((tls.cert, pems.server_cert), (tls.key, pems.server_key)):
        ours.write_bytes(given.read_bytes())
    return tls


async def shown_certificate(address: str) -> str:
    """The certificate that a new connection gets, PEM."""
    host, _, port = address.rpartition(":")
    return await asyncio.to_thread(ssl.get_server_certificate, (host, int(port)), timeout=TIMEOUT_S)


async def test_a_renewed_certificate_holds_from_the_next_connection_on(
    store: Any, pems: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "vlmpress_services")
    tls = copied(pems, tmp_path)
    server = Server(ServerConfig(listen="127.0.0.1:0", store=store.root, services=("evaluation",), tls=tls))
    await server.start()
    try:
        async with grpc.aio.secure_channel(server.address, channel_credentials(pems)) as before:
            assert await health(before) == health_pb2.HealthCheckResponse.SERVING
            assert await shown_certificate(server.address) == pems.server_cert.read_text()
            tls.key.write_bytes(pems.other_server_key.read_bytes())
            assert await shown_certificate(server.address) == pems.server_cert.read_text()
            assert "certificates: changed but cannot be read; what was read before stays in force: tls" in caplog.text
            tls.cert.write_bytes(pems.other_server_cert.read_bytes())
            assert await shown_certificate(server.address) == pems.other_server_cert.read_text()
            assert "certificates: changed and were read again" in caplog.text
            assert await health(before) == health_pb2.HealthCheckResponse.SERVING
        async with grpc.aio.secure_channel(server.address, channel_credentials(pems, ca="other_ca")) as channel:
            assert await health(channel) == health_pb2.HealthCheckResponse.SERVING
        tls.key.unlink()
        assert await shown_certificate(server.address) == pems.other_server_cert.read_text()
    finally:
        await server.stop(0)


async def test_a_changed_client_ca_holds_from_the_next_connection_on(
    store: Any, pems: Any, tmp_path: Path, calls: list[Any]
) -> None:
    ca = tmp_path / "ca.pem"
    ca.write_bytes(pems.ca.read_bytes())
    tls = copied(pems, tmp_path, ca)
    server = Server(ServerConfig(listen="127.0.0.1:0", store=store.root, services=("evaluation",), tls=tls))
    await server.start()
    try:
        for taken, refused in (("client", "other_client"), ("other_client", "client")):
            async with grpc.aio.secure_channel(server.address, channel_credentials(pems, taken)) as channel:
                assert (await answer(channel))[2] == "reached"
            async with grpc.aio.secure_channel(server.address, channel_credentials(pems, refused)) as channel:
                assert (await answer(channel))[0] is grpc.StatusCode.UNAVAILABLE
            ca.write_bytes(pems.other_ca.read_bytes())
        assert len(calls) == 2
    finally:
        await server.stop(0)


async def test_tokens_say_who_may_call_what(serving: Any, tmp_path: Path, calls: list[Any]) -> None:
    file = tmp_path / "tokens.yaml"
    all_of_it = add_token(file, "all", ["*"], None)
    reads = add_token(file, "reads", ["artifact:read"], None)
    scores = add_token(file, "scores", ["evaluation"], None)
    late = add_token(file, "late", ["*"], datetime.now(UTC) - timedelta(seconds=1))
    async with serving("artifact", "evaluation", tokens=file) as channel:
        assert await health(channel) == health_pb2.HealthCheckResponse.SERVING
        refused = grpc.StatusCode.UNAUTHENTICATED, "UNAUTHENTICATED"
        for bad in (None, "", "Bearer", "Bearer ", "Bearer nothing", all_of_it, f"Basic {all_of_it}", f"Bearer {late}"):
            assert (await answer(channel, SCORE, bad))[:2] == refused, bad
        assert (await answer(channel, "/x/y"))[:2] == refused
        assert (await answer(channel, SCORE, f"Bearer {reads}"))[:2] == (grpc.StatusCode.PERMISSION_DENIED, "SCOPE")
        assert (await answer(channel, SET_TAG, f"Bearer {reads}"))[0] is grpc.StatusCode.PERMISSION_DENIED
        assert (await answer(channel, LIST, f"Bearer {scores}"))[0] is grpc.StatusCode.PERMISSION_DENIED
        assert calls == []
        assert (await answer(channel, LIST, f"Bearer {reads}"))[0] is grpc.StatusCode.OK
        for token in (scores, all_of_it):
            assert (await answer(channel, SCORE, f"bearer {token}"))[2] == "reached"
        assert (await answer(channel, "/x/y", f"Bearer {reads}"))[0] is grpc.StatusCode.UNIMPLEMENTED
        assert len(calls) == 2


async def test_a_change_of_the_file_holds_from_the_next_call_on(
    serving: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    file = tmp_path / "tokens.yaml"
    first = add_token(file, "first", ["*"], None)
    async with serving("artifact", tokens=file) as channel:
        second = add_token(file, "second", ["*"], None)
        for token in (first, second):
            assert (await answer(channel, LIST, f"Bearer {token}"))[0] is grpc.StatusCode.OK
        file.write_text("[{name: broken")
        assert (await answer(channel, LIST, f"Bearer {second}"))[0] is grpc.StatusCode.OK
        assert "what was read before stays in force" in caplog.text
        file.write_text("[]")
        assert (await answer(channel, LIST, f"Bearer {second}"))[0] is grpc.StatusCode.UNAUTHENTICATED
    assert first not in caplog.text
    assert second not in caplog.text


def test_scopes_against_every_method() -> None:
    for method in methods_of(SERVICES).values():
        for scope in ("*", "*:read", *(f"{name}{end}" for name in SERVICES for end in ("", ":read"))):
            service, _, only_reading = scope.partition(":")
            expected = service in ("*", method.service) and (not only_reading or method.is_read_only)
            assert Token(name="x", sha256="", scopes=(scope,)).covers(method) is expected, (scope, method.name)
    check = Method("/grpc.health.v1.Health/Check", "health", "health.Check")
    assert Token(name="x", sha256="", scopes=()).covers(check)


def test_a_new_token_is_kept_as_its_hash_alone(tmp_path: Path) -> None:
    file = tmp_path / "new" / "tokens.yaml"
    ends = datetime(2030, 1, 2, 3, 4, 5, tzinfo=UTC)
    secret = add_token(file, "one", ["job", "artifact:read"], ends)
    assert len(secret) >= 43
    assert secret not in file.read_text()
    assert file.stat().st_mode & 0o777 == 0o600
    token = Token(name="one", sha256=hash_of(secret), scopes=("job", "artifact:read"), expires=ends)
    assert read_tokens(file) == (token,)
    assert TokenFile(file).find(secret) == token
    with pytest.raises(InvalidRequestError, match="name: expected a new one, got 'one'"):
        add_token(file, "one", ["*"], None)
    with pytest.raises(InvalidRequestError, match=r"scopes: expected .* got 'nothing'"):
        add_token(file, "two", ["nothing"], None)
    assert read_tokens(file) == (token,)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("{", "expected YAML"),
        ("name: x", "expected a list of tokens, got dict"),
        ("- x", "entry 0: expected name, sha256, scopes and perhaps expires"),
        ("- {name: a, token: secret, scopes: ['*']}", "entry 0: expected name, sha256"),
        ("- {name: a b, sha256: H, scopes: ['*']}", "entry 0: name: expected"),
        ("- {name: a, sha256: secret, scopes: ['*']}", "entry 0: sha256: expected 64 hex digits, got something else"),
        ("- {name: a, sha256: H, scopes: []}", "scopes: expected a list of at least one"),
        ("- {name: a, sha256: H, scopes: '*'}", "scopes: expected a list of at least one"),
        ("- {name: a, sha256: H, scopes: [jobs]}", "got 'jobs'"),
        ("- {name: a, sha256: H, scopes: ['*'], expires: soon}", "expires: expected an ISO 8601 time, got 'soon'"),
        ("- &t {name: a, sha256: H, scopes: ['*']}\n- *t", "name: expected each once"),
    ],
)
def test_a_bad_file_is_refused_and_tells_no_secret(tmp_path: Path, text: str, expected: str) -> None:
    file = tmp_path / "tokens.yaml"
    file.write_text(text.replace("H", '"' + "0" * 64 + '"'))
    with pytest.raises(InvalidRequestError) as caught:
        read_tokens(file)
    assert expected in str(caught.value)
    assert str(file) in str(caught.value)
    assert "secret" not in str(caught.value)


def test_a_time_without_a_zone_is_utc(tmp_path: Path) -> None:
    file = tmp_path / "tokens.yaml"
    for moment in ("2020-01-02 03:04:05", "2020-01-02T03:04:05Z", '"2020-01-02T05:04:05+02:00"'):
        file.write_text(f"- {{name: a, sha256: '{hash_of('x')}', scopes: ['*'], expires: {moment}}}")
        assert read_tokens(file)[0].expires == datetime(2020, 1, 2, 3, 4, 5, tzinfo=UTC)
        with pytest.raises(UnauthenticatedError, match="the token a has expired"):
            TokenFile(file).find("x")


def test_the_command_prints_a_token_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "tokens.yaml"
    command = ["vlmpress", "token", "new", "ci", "--file", str(file), "--scope", "job", "--scope", "artifact:read"]
    monkeypatch.setattr(sys, "argv", [*command, "--days", "1"])
    assert cli.main() == 0
    token = TokenFile(file).find(capsys.readouterr().out.strip())
    assert (token.name, token.scopes) == ("ci", ("job", "artifact:read"))
    assert token.expires is not None
    assert timedelta(hours=23) < token.expires - datetime.now(UTC) <= timedelta(days=1)
    monkeypatch.setattr(sys, "argv", command)
    assert cli.main() == 2
    assert capsys.readouterr().err.startswith("error: ")


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"cert": "none.pem"}, "tls.cert: expected a readable file"),
        ({"key": "other_client.key.pem"}, "tls: expected a PEM certificate and its unencrypted key"),
        ({"cert": "text.pem"}, "tls: expected a PEM certificate"),
        ({"client_ca": "text.pem"}, "tls.client_ca: expected PEM certificates"),
        ({"client_ca": "none.pem"}, "tls.client_ca: expected a readable file"),
    ],
)
def test_bad_certificates_are_refused_before_anything_is_served(pems: Any, change: Any, expected: str) -> None:
    (pems.folder / "text.pem").write_text("no certificate")
    files = {"cert": "server.cert.pem", "key": "server.key.pem", **change}
    with pytest.raises(InvalidRequestError, match=expected):
        server_credentials(TlsConfig(**{name: pems.folder / file for name, file in files.items()}))
