import asyncio
import copy
from typing import Any

import pytest

from vlmpress_services.clients import ArtifactClient, EdgeVlmClient, EvaluationClient
from vlmpress_services.errors import ServiceError
from vlmpress_services.scoring import Prediction, score
from vlmpress_services.serving.server import Server, ServerConfig


@pytest.fixture
async def address(store: Any) -> Any:
    services = ("artifact", "evaluation", "edgevlm")
    server = Server(ServerConfig(listen="127.0.0.1:0", store=store.root, services=services))
    await server.start()
    yield server.address
    await server.stop(0.2)


async def test_an_answer_comes_whole_with_its_counts(address: str, store: Any, add_model: Any, png: bytes) -> None:
    store.tag("it", add_model().digest)

    def ask() -> Any:
        # Copying goes the way of pickling: as a Ray task gets it, its channel still to be opened.
        with copy.deepcopy(EdgeVlmClient(address)) as client:
            return (
                client.load("it"),
                client.generate("it", png, "is it red ?", 4),
                client.generate("it", None, "red", 1),
            )

    info, answer, text_only = await asyncio.to_thread(ask)
    assert (info.digest, info.model_type) == (store.tags()["it"], "llava")
    assert answer.num_visual_tokens == 16
    assert answer.num_prompt_tokens > 16
    assert 1 <= answer.num_generated_tokens <= 4
    assert 0 < answer.ttft_s < 60
    assert (text_only.num_visual_tokens, text_only.num_generated_tokens) == (0, 1)


async def test_scores_are_those_of_the_library(address: str) -> None:
    rows = [
        Prediction(index=0, question_type="yes/no", expected="yes", answer="no"),
        Prediction(index=1, question_type="other", expected="red", answer="red"),
    ]
    with EvaluationClient(address) as client:
        assert await asyncio.to_thread(client.score, rows) == score(rows)


async def test_artifacts_are_read(address: str, add_log: Any) -> None:
    artifact = add_log("hello")
    with ArtifactClient(address) as client:
        assert await asyncio.to_thread(client.manifest, artifact.digest) == (artifact.digest, artifact.manifest)
        assert [row.digest for row in await asyncio.to_thread(client.list)] == [artifact.digest]
        parts = await asyncio.to_thread(lambda: list(client.read_file(artifact.digest, "log.txt", 1)))
        assert b"".join(parts) == b"ello"
        assert await asyncio.to_thread(client.verify, artifact.digest) == ""
        (artifact.path / "log.txt").write_text("jello")
        assert "log.txt" in await asyncio.to_thread(client.verify, artifact.digest)


async def test_errors_are_typed_and_survive_pickling(address: str) -> None:
    with EdgeVlmClient(address) as client, pytest.raises(ServiceError) as caught:
        await asyncio.to_thread(client.generate, "none", None, "is it red ?", 1)
    assert caught.value.code == "NOT_FOUND"
    assert str(copy.deepcopy(caught.value)) == str(caught.value)


def test_no_server_is_unavailable() -> None:
    with EvaluationClient("127.0.0.1:1", timeout_s=5) as client, pytest.raises(ServiceError, match="UNAVAILABLE"):
        client.score([Prediction(index=0, question_type="other", expected="a", answer="a")])
