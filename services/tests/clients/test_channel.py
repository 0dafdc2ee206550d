import asyncio
import copy
from typing import Any

import grpc
import pytest

from vlmpress_services.clients import Connection, EvaluationClient, aio
from vlmpress_services.errors import InvalidRequestError, ServiceError
from vlmpress_services.scoring import Score, Scores

NONE = Scores(overall=Score(num_questions=0, accuracy=0), by_type={})


async def score(connection: Connection | str, client: str) -> Scores:
    """Scores nothing, through one client or the other."""
    if client == "aio":
        async with aio.EvaluationClient(connection, timeout_s=20) as asked:
            return await asked.score([])

    def ask() -> Scores:
        # Copied as a task of another process gets it, before it has a channel.
        with copy.deepcopy(EvaluationClient(connection, timeout_s=20)) as asked:
            return asked.score([])

    return await asyncio.to_thread(ask)


both = pytest.mark.parametrize("client", ["sync", "aio"])


@both
async def test_a_token_goes_with_every_call(serve_evaluation: Any, evaluation: Any, client: str) -> None:
    servicer = evaluation()
    async with serve_evaluation(servicer) as address:
        assert await score(Connection(address=address, token="secret"), client) == NONE
        assert servicer.metadata["authorization"] == "Bearer secret"
        await score(address, client)
        assert "authorization" not in servicer.metadata


@both
async def test_tls_with_a_token(serve_evaluation: Any, evaluation: Any, pem: Any, client: str) -> None:
    servicer = evaluation()
    async with serve_evaluation(servicer, pem.server) as address:
        assert await score(Connection(address=address, ca=pem.ca, token="secret"), client) == NONE
        assert servicer.metadata["authorization"] == "Bearer secret"


@both
async def test_mutual_tls(serve_evaluation: Any, evaluation: Any, pem: Any, client: str) -> None:
    servicer = evaluation()
    async with serve_evaluation(servicer, pem.mutual) as address:
        assert await score(Connection(address=address, ca=pem.ca, cert=pem.cert, key=pem.key), client) == NONE
        with pytest.raises(ServiceError, match="UNAVAILABLE"):
            await score(Connection(address=address, ca=pem.ca), client)
    assert servicer.num_calls == 1


@both
async def test_a_strangers_server_gets_nothing(serve_evaluation: Any, evaluation: Any, pem: Any, client: str) -> None:
    servicer = evaluation()
    async with serve_evaluation(servicer, pem.server) as address:
        for bad in (
            Connection(address=address, ca=pem.stranger, token="secret"),
            Connection(address=f"https://{address}"),
        ):
            with pytest.raises(ServiceError, match="UNAVAILABLE"):
                await score(bad, client)
    assert servicer.num_calls == 0


async def test_a_missing_file_is_said_in_one_line(pem: Any) -> None:
    connection = Connection(address="localhost:5", ca=pem.ca.with_name("none.pem"))
    with pytest.raises(InvalidRequestError, match=r"^ca: expected a file, got .*none\.pem"):
        EvaluationClient(connection).score([])


@both
async def test_errors_say_what_the_server_says(serve_evaluation: Any, evaluation: Any, client: str) -> None:
    servicer = evaluation(grpc.StatusCode.RESOURCE_EXHAUSTED)
    async with serve_evaluation(servicer) as address:
        with pytest.raises(ServiceError) as caught:
            await score(address, client)
    for error in (caught.value, copy.deepcopy(caught.value)):
        assert str(error) == "RESOURCE_EXHAUSTED: not now"
        assert (error.code, error.text, error.reason) == ("RESOURCE_EXHAUSTED", "not now", "TOO_BUSY")
        assert (error.metadata, error.request_id, error.retry_after_s) == ({"limit": "3"}, "abc", 0.25)
    assert servicer.num_calls == 1


@both
async def test_a_repeatable_call_is_repeated_while_the_server_is_away(
    serve_evaluation: Any, evaluation: Any, client: str
) -> None:
    servicer = evaluation(*[grpc.StatusCode.UNAVAILABLE] * 3)
    async with serve_evaluation(servicer) as address:
        assert await score(address, client) == NONE
    assert servicer.num_calls == 4


@both
async def test_repeating_ends(serve_evaluation: Any, evaluation: Any, client: str) -> None:
    servicer = evaluation(*[grpc.StatusCode.UNAVAILABLE] * 9)
    async with serve_evaluation(servicer) as address:
        with pytest.raises(ServiceError, match="UNAVAILABLE"):
            await score(address, client)
    assert servicer.num_calls == 5


@both
async def test_no_server_is_unavailable(client: str) -> None:
    with pytest.raises(ServiceError) as caught:
        await score("127.0.0.1:1", client)
    assert (caught.value.code, caught.value.reason, caught.value.request_id) == ("UNAVAILABLE", "", "")
