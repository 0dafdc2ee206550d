"""Has a server score answers."""

from collections.abc import Iterable

from vlmpress.evaluation.v1 import evaluation_pb2, evaluation_service_pb2, evaluation_service_pb2_grpc
from vlmpress_services.clients.call import Call
from vlmpress_services.clients.channel import Client
from vlmpress_services.scoring import Prediction, Score, Scores


class EvaluationClient(Client):
    """Has answers scored."""

    def score(self, predictions: Iterable[Prediction]) -> Scores:
        """Exact-match accuracy over all and by question type; raises ServiceError."""
        return self._call(score_call(predictions))


def score_call(predictions: Iterable[Prediction]) -> Call[Scores]:
    """The call of `score`."""
    items = [
        evaluation_pb2.Prediction(
            index=item.index, question_type=item.question_type, expected=item.expected, answer=item.answer
        )
        for item in predictions
    ]
    return Call(
        stub=evaluation_service_pb2_grpc.EvaluationServiceStub,
        method="ScorePredictions",
        request=evaluation_service_pb2.ScorePredictionsRequest(predictions=items),
        read=_scores,
    )


def _scores(response: evaluation_service_pb2.ScorePredictionsResponse) -> Scores:
    by_type = {name: _score(value) for name, value in sorted(response.score_by_type.items())}
    return Scores(overall=_score(response.score), by_type=by_type)


def _score(proto: evaluation_pb2.Score) -> Score:
    return Score(num_questions=proto.num_questions, accuracy=proto.accuracy)
