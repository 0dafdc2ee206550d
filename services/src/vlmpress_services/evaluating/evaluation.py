"""A whole evaluation: answers in shards, scores, and what was measured of the model."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from vlmpress.artifact import Artifact
from vlmpress.evaluation.v1 import evaluation_pb2
from vlmpress_services.datasets import read_evaluation
from vlmpress_services.evaluating.measures import evaluation_spec, model_metrics, scores_of
from vlmpress_services.evaluating.predictions import write_predictions
from vlmpress_services.evaluating.shards import shards_of
from vlmpress_services.evaluating.spreading import answer_shards
from vlmpress_services.workers.group import TaskResources
from vlmpress_services.workers.runners import OnProgress, Runner


@dataclass(frozen=True, kw_only=True, slots=True)
class Questions:
    """Who is asked what, and how.

    Attributes:
        model: Answers.
        dataset: Its evaluation questions are asked.
        shard_questions: That one worker answers at a time, at least 1.
        max_new_tokens: Longest answer, at least 1.
    """

    model: Artifact
    dataset: Artifact
    shard_questions: int
    max_new_tokens: int


@dataclass(frozen=True, slots=True)
class Evaluated:
    """What an evaluation artifact says of itself: its specification and its metrics."""

    spec: evaluation_pb2.Evaluation
    metrics: Mapping[str, float]


def evaluate(
    questions: Questions,
    location: str,
    shards: Path,
    out: Path,
    runner: Runner,
    resources: TaskResources,
    on_progress: OnProgress,
) -> Evaluated:
    """Asks all questions and writes the answers into a draft.

    Args:
        questions: What to ask.
        location: Of the store that holds model and dataset, as every worker reaches it.
        shards: Folder of the shards' results, which survives a kill of this process.
        out: The draft.
        runner: Does the shards.
        resources: Of each shard's worker.
        on_progress: Told how many shards are done, of how many.

    Raises:
        InvalidRequestError: A number is out of its range, or there is no question.
        Exception: As `answer_shards`.
    """
    model, dataset = questions.model, questions.dataset
    number = len(read_evaluation(dataset.path))
    pieces = shards_of(model.digest, dataset.digest, number, questions.shard_questions, questions.max_new_tokens)
    answered = answer_shards(location, pieces, shards, runner, resources, on_progress)
    write_predictions(out, answered)
    return Evaluated(evaluation_spec(model, dataset, scores_of(answered)), model_metrics(model, dataset, answered))
