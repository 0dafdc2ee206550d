"""EvaluateJob on a real server, its shards on two workers of Ray."""

from collections.abc import Callable
from contextlib import suppress
from typing import Any

import psutil
import pytest
from PIL import Image

from vlmpress.artifact import Artifact
from vlmpress.data import Record, Turn, write_records
from vlmpress.dataset.v1 import dataset_pb2
from vlmpress.job.v1 import job_pb2 as pb
from vlmpress_services.clients import JobClient
from vlmpress_services.evaluating.answering import answer_shard
from vlmpress_services.evaluating.predictions import read_predictions
from vlmpress_services.evaluating.shards import shards_of
from vlmpress_services.store.local import LocalStore

NUM_QUESTIONS = 9


@pytest.fixture
def dataset(own_store: LocalStore) -> Artifact:
    """Questions to evaluate that the tiny model has words for."""
    with own_store.draft() as draft:
        images = draft.path / "images"
        images.mkdir()
        records = []
        for number in range(NUM_QUESTIONS):
            name = images / f"{number}.png"
            Image.new("RGB", (40, 30), (25 * number, 90, 200)).save(name)
            records.append(Record(str(number), (name,), (Turn("is it a circle ?", "yes"),), "test"))
        write_records(draft.path / "records.jsonl", records, images)
        return draft.commit(dataset_pb2.Dataset(name="asked", num_test=NUM_QUESTIONS), producer=("test", "1"))


def test_shards_are_answered_on_ray_as_here(
    launch: Callable[..., Any], own_store: LocalStore, tiny: Artifact, dataset: Artifact
) -> None:
    server = launch(own_store.root, "--services", "job")
    job = pb.EvaluateJob(model="tiny", dataset=dataset.digest, num_workers=2, shard_questions=2, max_new_tokens=4)
    seen: list[pb.Job] = []
    names: set[str] = set()
    with JobClient(server.address) as client:
        made = client.create(pb.JobSpec(evaluate=job), "once")
        for state in client.watch(made.job_id):
            seen.append(state)
            for each in psutil.Process(server.process.pid).children(recursive=True):
                with suppress(psutil.NoSuchProcess):
                    names.add(each.name())
    assert seen[-1].state == pb.JOB_STATE_SUCCEEDED, seen[-1].message
    assert "raylet" in names
    assert [each.progress for each in seen] == sorted(each.progress for each in seen)
    evaluation = own_store.verify(seen[-1].result)
    shards = shards_of(tiny.digest, dataset.digest, NUM_QUESTIONS, 2, 4)
    expected = [answer for shard in shards for answer in answer_shard(str(own_store.root), shard)]
    assert read_predictions(evaluation) == expected
    assert evaluation.manifest.evaluation.score.num_questions == NUM_QUESTIONS
    assert [parent.digest for parent in evaluation.manifest.parents] == [tiny.digest, dataset.digest]
    assert not list((own_store.root / "runs").iterdir())
