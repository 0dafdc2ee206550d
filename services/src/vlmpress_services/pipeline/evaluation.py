"""The evaluation step: every variant is served, asked over gRPC and scored."""

import json
import statistics
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path

from edgevlm import Engine, prefill_macs
from vlmpress.artifact import Artifact
from vlmpress.data import Record, question_type
from vlmpress.evaluation.v1 import evaluation_pb2
from vlmpress_services.clients import Answer, EdgeVlmClient, EvaluationClient
from vlmpress_services.datasets import read_evaluation
from vlmpress_services.errors import ServiceError
from vlmpress_services.pipeline.runners import Runner
from vlmpress_services.pipeline.stepping import Outcome, Work
from vlmpress_services.scoring import Prediction, Score

SHARD_QUESTIONS = 125
NUM_TIMED = 60
NUM_COUNTED = 24
MAX_NEW_TOKENS = 16
NUM_STREAMS = 8
"""Questions of one shard that are asked at a time."""
BUSY_WAITS_S = (0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 20.0)
PREDICTIONS = "predictions.jsonl"


@dataclass(frozen=True, slots=True)
class Answered:
    """One question with a variant's answer."""

    index: int
    question_type: str
    question: str
    expected: str
    answer: str
    num_visual_tokens: int


def answer_shard(address: str, model: str, dataset: str, start: int, stop: int) -> list[Answered]:
    """Asks questions [start, stop) of a dataset directory; runs wherever a runner puts it.

    Args:
        address: Of a server that holds the model.
        model: Digest.
        dataset: Directory of the dataset artifact.
        start: First question.
        stop: One past the last.
    """
    records = read_evaluation(Path(dataset))[start:stop]
    with EdgeVlmClient(address) as client, ThreadPoolExecutor(NUM_STREAMS) as streams:
        # Opens the channel that all share.
        client.load(model)
        answers = list(streams.map(lambda record: _answer(client, model, record), records))
    return [
        Answered(
            index,
            question_type(record.turns[0].answer),
            record.turns[0].question,
            record.turns[0].answer,
            answer.text,
            answer.num_visual_tokens,
        )
        for index, (record, answer) in enumerate(zip(records, answers, strict=True), start)
    ]


def _answer(client: EdgeVlmClient, model: str, record: Record) -> Answer:
    """The model's answer; waits while other shards take all of the server's streams."""
    image = None if record.image is None else record.image.read_bytes()
    for wait_s in (*BUSY_WAITS_S, None):
        try:
            return client.generate(model, image, record.turns[0].question, MAX_NEW_TOKENS)
        except ServiceError as error:
            if error.code != "RESOURCE_EXHAUSTED" or wait_s is None:
                raise
            time.sleep(wait_s)
    raise AssertionError("the last try answers or raises")


def evaluate(model: Artifact, dataset: Artifact, address: str, runner: Runner, work: Work) -> Outcome:
    """Answers and scores all evaluation questions, then times some of them alone and counts their work."""
    records = read_evaluation(dataset.path)
    with EdgeVlmClient(address) as client:
        loaded = client.load(model.digest)
    shards = [
        (address, model.digest, str(dataset.path), start, min(start + SHARD_QUESTIONS, len(records)))
        for start in range(0, len(records), SHARD_QUESTIONS)
    ]
    answered = [one for shard in runner.map(answer_shard, shards, work.progress.update) for one in shard]
    predictions = [
        Prediction(index=a.index, question_type=a.question_type, expected=a.expected, answer=a.answer) for a in answered
    ]
    with EvaluationClient(address) as client:
        scored = client.score(predictions)
    lines = (json.dumps(asdict(one), sort_keys=True, ensure_ascii=False) for one in answered)
    (work.path / PREDICTIONS).write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    spec = evaluation_pb2.Evaluation(
        model=model.digest,
        dataset=dataset.digest,
        score=_score_proto(scored.overall),
        score_by_type={name: _score_proto(value) for name, value in scored.by_type.items()},
    )
    return Outcome(
        spec,
        {
            "params": float(loaded.num_params),
            "visual_tokens_mean": statistics.fmean(one.num_visual_tokens for one in answered),
            "weight_bytes": float(_weight_bytes(model)),
            "prefill_gmacs": _prefill_gmacs(model, dataset),
            **_ttft_ms(address, model, dataset),
        },
    )


def _score_proto(score: Score) -> evaluation_pb2.Score:
    return evaluation_pb2.Score(num_questions=score.num_questions, accuracy=score.accuracy)


def _ttft_ms(address: str, model: Artifact, dataset: Artifact) -> dict[str, float]:
    """Time to the first token as a client sees it, one request at a time, after one to warm up."""
    records = read_evaluation(dataset.path)[: NUM_TIMED + 1]
    times = []
    with EdgeVlmClient(address) as client:
        for record in records:
            image = None if record.image is None else record.image.read_bytes()
            times.append(1000 * client.generate(model.digest, image, record.turns[0].question, 1).ttft_s)
    timed = sorted(times[1:] or times)
    return {
        "ttft_ms_median": statistics.median(timed),
        "ttft_ms_p90": timed[min(len(timed) - 1, int(0.9 * len(timed)))],
    }


def _prefill_gmacs(model: Artifact, dataset: Artifact) -> float:
    """Mean work of one prefill over the first questions, 1e9 multiply-accumulates, attention included."""
    engine = Engine.load(model.path)
    records = read_evaluation(dataset.path)[:NUM_COUNTED]
    counts = [
        prefill_macs(engine, None if r.image is None else r.image.read_bytes(), r.turns[0].question) for r in records
    ]
    return statistics.fmean(counts) / 1e9


def _weight_bytes(model: Artifact) -> int:
    """Bytes of the weight files with their indexes, and of the manifest."""
    files = [model.path / file.path for file in model.manifest.files]
    weights = [path for path in files if path.suffix == ".safetensors" or path.name.endswith(".safetensors.index.json")]
    return sum(path.stat().st_size for path in [*weights, model.path / "manifest.json"])


def read_predictions(artifact: Artifact) -> Sequence[Answered]:
    """The answers an evaluation artifact keeps."""
    lines = (artifact.path / PREDICTIONS).read_text(encoding="utf-8").splitlines()
    return [Answered(**json.loads(line)) for line in lines]
