"""EvaluateJob: what is refused, and what comes out."""

from pathlib import Path
from typing import Any

import pytest

from vlmpress.artifact import Artifact, ArtifactError
from vlmpress.job.v1 import job_pb2 as pb
from vlmpress_services.datasets import read_evaluation, read_split
from vlmpress_services.errors import InvalidRequestError, NotFoundError
from vlmpress_services.evaluating.predictions import read_predictions
from vlmpress_services.jobs.work import check_spec, do_work
from vlmpress_services.store.local import LocalStore


@pytest.fixture
def asked(add_model: Any, add_dataset: Any) -> tuple[Artifact, Artifact]:
    return add_model(), add_dataset(num_train=2, num_test=7)


def spec(model: str, dataset: str, **fields: Any) -> pb.JobSpec:
    return pb.JobSpec(evaluate=pb.EvaluateJob(model=model, dataset=dataset, **fields))


def work(store: LocalStore, job: pb.JobSpec) -> tuple[Artifact, list[tuple[float, str]]]:
    seen: list[tuple[float, str]] = []
    check_spec(job, store)
    digest = do_work(job, store, lambda share, note, details=None: seen.append((share, note)))  # type: ignore[arg-type]
    return store.verify(digest), seen


def test_every_test_question_is_answered_and_scored(store: LocalStore, asked: tuple[Artifact, Artifact]) -> None:
    model, dataset = asked
    made, seen = work(store, spec(model.digest, dataset.digest, shard_questions=3, max_new_tokens=4))
    manifest = made.manifest
    answered = read_predictions(made)
    right = [one.answer.strip().lower() == one.expected.strip().lower() for one in answered]
    assert manifest.evaluation.score.num_questions == 7
    assert manifest.evaluation.score.accuracy == pytest.approx(sum(right) / 7)
    assert [(parent.role, parent.digest) for parent in manifest.parents] == [
        ("model", model.digest),
        ("dataset", dataset.digest),
    ]
    assert [one.index for one in answered] == list(range(7))
    assert {one.num_visual_tokens for one in answered} == {16}
    assert manifest.metrics["params"] > 0 < manifest.metrics["prefill_gmacs"]
    assert seen[0] == (0.0, "0 of 3 shards")
    assert seen[-1] == (1.0, "3 of 3 shards: questions 6 to 6")
    assert not any((store.root / "runs").glob("evaluate-*"))


def test_shards_of_another_size_give_the_same_answers(store: LocalStore, asked: tuple[Artifact, Artifact]) -> None:
    refs = [each.digest for each in asked]
    one, seven = (work(store, spec(*refs, shard_questions=size, max_new_tokens=4))[0] for size in (1, 7))
    assert read_predictions(one) == read_predictions(seven)


def test_without_chosen_questions_every_turn_of_the_test_split_is_one(asked: tuple[Artifact, Artifact]) -> None:
    path: Path = asked[1].path
    assert not (path / "evaluation.jsonl").exists()
    assert [record.turns for record in read_evaluation(path)] == [
        (turn,) for record in read_split(path, "test") for turn in record.turns
    ]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"max_new_tokens": 5000}, "max_new_tokens: expected 0 to 4096, got 5000"),
        ({"shard_questions": 20000}, "shard_questions: expected 0 to 10000"),
        ({"num_workers": 2000}, "num_workers: expected 0 to 1024"),
        ({"cpus_per_worker": -1.0}, "cpus_per_worker: expected 0 to 1024, got -1"),
        ({"gpus_per_worker": float("nan")}, "gpus_per_worker: expected 0 to 1024, got nan"),
    ],
)
def test_numbers_out_of_range_are_refused(
    store: LocalStore, asked: tuple[Artifact, Artifact], fields: dict[str, Any], message: str
) -> None:
    with pytest.raises(InvalidRequestError, match=message):
        check_spec(spec(asked[0].digest, asked[1].digest, **fields), store)


def test_wrong_kinds_and_missing_artifacts_are_refused(store: LocalStore, asked: tuple[Artifact, Artifact]) -> None:
    model, dataset = (each.digest for each in asked)
    with pytest.raises(InvalidRequestError, match="model: expected a kind of model, edge_model, quantized_model"):
        check_spec(spec(dataset, dataset), store)
    with pytest.raises(InvalidRequestError, match="dataset: expected a kind of dataset, got model"):
        check_spec(spec(model, model), store)
    with pytest.raises(NotFoundError):
        check_spec(spec("0" * 64, dataset), store)


def test_a_damaged_model_fails_the_job(store: LocalStore, asked: tuple[Artifact, Artifact]) -> None:
    model, dataset = asked
    weights = next(model.path.glob("*.safetensors"))
    weights.write_bytes(weights.read_bytes()[:-1])
    with pytest.raises(ArtifactError, match=r"expected \d+ bytes, got \d+"):
        work(store, spec(model.digest, dataset.digest))
