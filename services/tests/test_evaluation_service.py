from typing import Any

import grpc
import pytest

from vlmpress.evaluation.v1 import evaluation_pb2
from vlmpress.evaluation.v1 import evaluation_service_pb2 as pb
from vlmpress.evaluation.v1.evaluation_service_pb2_grpc import EvaluationServiceStub
from vlmpress_services.errors import InvalidRequestError
from vlmpress_services.scoring import Prediction, Score, score


def made(index: int, kind: str, expected: str, answer: str) -> Prediction:
    return Prediction(index=index, question_type=kind, expected=expected, answer=answer)


ROWS = [
    made(0, "yes/no", "yes", " Yes\n"),
    made(1, "yes/no", "no", "yes"),
    made(7, "other", "Red", "red"),
    made(3, "number", "3", "three"),
    made(4, "other", "light blue", "light  blue"),
]


def test_score_is_the_share_of_equal_answers() -> None:
    scores = score(ROWS)
    assert scores.overall == Score(num_questions=5, accuracy=2 / 5)
    assert scores.by_type == {
        "yes/no": Score(num_questions=2, accuracy=0.5),
        "number": Score(num_questions=1, accuracy=0.0),
        "other": Score(num_questions=2, accuracy=0.5),
    }


@pytest.mark.parametrize("rows", [[], [ROWS[0], ROWS[0]], [made(0, "", "a", "a")], [made(0, "all", "a", "a")]])
def test_bad_predictions_are_refused(rows: list[Prediction]) -> None:
    with pytest.raises(InvalidRequestError):
        score(rows)


async def test_scores_over_the_wire_are_those_of_the_library(serving: Any, refusal: Any) -> None:
    items = [
        evaluation_pb2.Prediction(
            index=row.index, question_type=row.question_type, expected=row.expected, answer=row.answer
        )
        for row in ROWS
    ]
    async with serving("evaluation") as channel:
        stub = EvaluationServiceStub(channel)
        response = await stub.ScorePredictions(pb.ScorePredictionsRequest(predictions=items))
        assert response.score.accuracy == score(ROWS).overall.accuracy
        assert {name: item.num_questions for name, item in response.score_by_type.items()} == {
            "yes/no": 2, "number": 1, "other": 2,
        }  # fmt: skip
        code, text = await refusal(stub.ScorePredictions(pb.ScorePredictionsRequest(predictions=items[:1] * 2)))
        assert code is grpc.StatusCode.INVALID_ARGUMENT
        assert "each index once" in text
