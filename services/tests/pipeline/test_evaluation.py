import asyncio
import shutil
from typing import Any

import pytest

from edgevlm import Engine
from vlmpress_services.datasets import read_evaluation
from vlmpress_services.errors import ServiceError
from vlmpress_services.pipeline import evaluation
from vlmpress_services.serving.server import Server, ServerConfig


@pytest.mark.parametrize("max_concurrent", [64, 2])
async def test_a_shard_s_answers_are_the_engine_s_in_order(
    store: Any, add_model: Any, add_dataset: Any, monkeypatch: pytest.MonkeyPatch, max_concurrent: int
) -> None:
    """Also where the server refuses most of what is asked at a time."""
    monkeypatch.setattr(evaluation, "BUSY_WAITS_S", (0.02,) * 500)
    model, dataset = add_model(), add_dataset(num_train=1, num_test=24).path
    shutil.copy(dataset / "records.jsonl", dataset / "evaluation.jsonl")
    records = read_evaluation(dataset)[3:22]
    engine = Engine.load(model.path)
    expected = [
        list(engine.generate(r.image.read_bytes(), r.turns[0].question, evaluation.MAX_NEW_TOKENS))[-1].text  # type: ignore[union-attr]
        for r in records
    ]
    server = Server(
        ServerConfig(listen="127.0.0.1:0", store=store.root, services=("edgevlm",), max_concurrent=max_concurrent)
    )
    await server.start()
    arguments = (server.address, model.digest, str(dataset), 3, 22)
    answered = await asyncio.to_thread(evaluation.answer_shard, *arguments)
    await server.stop(0.2)
    assert [one.answer for one in answered] == expected
    assert [one.index for one in answered] == list(range(3, 22))
    assert [(one.question, one.expected) for one in answered] == [
        (r.turns[0].question, r.turns[0].answer) for r in records
    ]
    with pytest.raises(ServiceError):
        await asyncio.to_thread(evaluation.answer_shard, *arguments)
