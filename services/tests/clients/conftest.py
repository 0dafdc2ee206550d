from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import grpc
import pytest
import trustme
from google.protobuf import any_pb2, duration_pb2
from google.rpc import error_details_pb2, status_pb2

from vlmpress.evaluation.v1 import evaluation_service_pb2 as pb
from vlmpress.evaluation.v1 import evaluation_service_pb2_grpc

Listen = Callable[..., AbstractAsyncContextManager[str]]


class Evaluation(evaluation_service_pb2_grpc.EvaluationServiceServicer):
    """Counts its calls, fails as many as it is told to, and keeps the last call's metadata."""

    def __init__(self, *failures: grpc.StatusCode) -> None:
        self.failures = list(failures)
        self.num_calls = 0
        self.metadata: dict[str, str] = {}

    async def ScorePredictions(self, request: Any, context: Any) -> Any:  # noqa: N802
        self.num_calls += 1
        self.metadata = dict(context.invocation_metadata())
        if self.failures:
            await fail(context, self.failures.pop(0))
        return pb.ScorePredictionsResponse()


async def fail(context: Any, code: grpc.StatusCode, text: str = "not\nnow") -> None:
    """Ends a call as the server does: with ErrorInfo, RetryInfo and a request id."""
    details = []
    info = error_details_pb2.ErrorInfo(reason="TOO_BUSY", domain="vlmpress", metadata={"limit": "3"})
    retry = error_details_pb2.RetryInfo(retry_delay=duration_pb2.Duration(nanos=250_000_000))
    for message in (info, retry):
        packed = any_pb2.Any()
        packed.Pack(message)
        details.append(packed)
    status = status_pb2.Status(code=code.value[0], message=text, details=details)
    context.set_trailing_metadata(
        (("x-request-id", "abc"), ("grpc-status-details-bin", status.SerializeToString())),
    )
    await context.abort(code, text)


@pytest.fixture
def evaluation() -> Callable[..., Evaluation]:
    return Evaluation


@pytest.fixture
def failing() -> Any:
    return fail


@pytest.fixture
def listen() -> Listen:
    """The address of a small server; `add(server)` registers what it serves."""

    @asynccontextmanager
    async def run(add: Callable[[Any], None], credentials: Any = None, port: int = 0) -> AsyncIterator[str]:
        server = grpc.aio.server(options=(("grpc.so_reuseport", 0),))
        add(server)
        name = f"127.0.0.1:{port}"
        port = server.add_secure_port(name, credentials) if credentials else server.add_insecure_port(name)
        await server.start()
        try:
            yield f"127.0.0.1:{port}"
        finally:
            await server.stop(0)

    return run


@pytest.fixture
def serve_evaluation(listen: Listen) -> Any:
    """The address of a server of one `Evaluation`."""

    def run(servicer: Evaluation, credentials: Any = None) -> AbstractAsyncContextManager[str]:
        def add(server: Any) -> None:
            evaluation_service_pb2_grpc.add_EvaluationServiceServicer_to_server(servicer, server)

        return listen(add, credentials)

    return run


@pytest.fixture(scope="session")
def pem(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """PEM files of an authority, a client it signed and a stranger; a server's credentials under the first."""
    folder = tmp_path_factory.mktemp("pem")
    authority, stranger = trustme.CA(), trustme.CA()
    server, client = authority.issue_cert("127.0.0.1", "localhost"), authority.issue_cert("client@example.org")
    pair = [(server.private_key_pem.bytes(), b"".join(blob.bytes() for blob in server.cert_chain_pems))]

    def written(name: str, blob: Any) -> Path:
        blob.write_to_path(folder / name)
        return folder / name

    return SimpleNamespace(
        ca=written("ca.pem", authority.cert_pem),
        stranger=written("stranger.pem", stranger.cert_pem),
        cert=written("client.pem", client.cert_chain_pems[0]),
        key=written("client.key", client.private_key_pem),
        server_cert=written("server.pem", server.cert_chain_pems[0]),
        server_key=written("server.key", server.private_key_pem),
        server=grpc.ssl_server_credentials(pair),
        mutual=grpc.ssl_server_credentials(pair, authority.cert_pem.bytes(), True),
    )
