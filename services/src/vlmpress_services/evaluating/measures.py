"""What an evaluation tells of a model beside its answers."""

import statistics
from collections.abc import Sequence

from edgevlm import Engine, prefill_macs
from vlmpress.artifact import Artifact
from vlmpress.evaluation.v1 import evaluation_pb2
from vlmpress_services.datasets import read_evaluation
from vlmpress_services.evaluating.shards import Answered
from vlmpress_services.scoring import Prediction, Score, Scores, score

NUM_COUNTED = 24
"""Questions whose work is counted."""


def scores_of(answered: Sequence[Answered]) -> Scores:
    """Exact-match accuracy, over all and by question type."""
    return score(
        Prediction(index=one.index, question_type=one.question_type, expected=one.expected, answer=one.answer)
        for one in answered
    )


def evaluation_spec(model: Artifact, dataset: Artifact, scores: Scores) -> evaluation_pb2.Evaluation:
    """Specification of an evaluation artifact."""
    return evaluation_pb2.Evaluation(
        model=model.digest,
        dataset=dataset.digest,
        score=_score_proto(scores.overall),
        score_by_type={name: _score_proto(value) for name, value in scores.by_type.items()},
    )


def model_metrics(model: Artifact, dataset: Artifact, answered: Sequence[Answered]) -> dict[str, float]:
    """Parameters (tied ones once), mean visual tokens, bytes of the weights, and mean work of a prefill."""
    engine = Engine.load(model.path)
    return {
        "params": float(engine.num_params),
        "visual_tokens_mean": statistics.fmean(one.num_visual_tokens for one in answered),
        "weight_bytes": float(_weight_bytes(model)),
        "prefill_gmacs": _prefill_gmacs(engine, dataset),
    }


def _score_proto(found: Score) -> evaluation_pb2.Score:
    return evaluation_pb2.Score(num_questions=found.num_questions, accuracy=found.accuracy)


def _prefill_gmacs(engine: Engine, dataset: Artifact) -> float:
    """Mean over the first questions, 1e9 multiply-accumulates, attention included."""
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
