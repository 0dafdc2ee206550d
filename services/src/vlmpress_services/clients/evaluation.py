"""Has a server score answers."""

from collections.abc import Iterable

from vlmpress.evaluation.v1 import evaluation_pb2, evaluation_service_pb2, evaluation_service_pb2_grpc
from vlmpress_services.clients.channel import Client, typed_errors
from vlmpress_services.scoring import Prediction, Score, Scores


class EvaluationClient(Client):
    """Has answers scored."""

    def score(self, predictions: Iterable[Prediction]) -> Scores:
        """Exact-match accuracy over all and by question type; raises ServiceError."""
        items = [
            evaluation_pb2.Prediction(
                index=item.index, question_type=item.question_type, expected=item.expected, answer=item.answer
            )
            for item in predictions
        ]
        request = evaluation_service_pb2.ScorePredictionsRequest(predictions=items)
        with typed_errors():
            response = self._stub(evaluation_service_pb2_grpc.EvaluationServiceStub).ScorePredictions(
                request, timeout=self.timeout_s
            )
        by_type = {name: _score(value) for name, value in sorted(response.score_by_type.items())}
        return Scores(overall=_score(response.score), by_type=by_type)


def _score(proto: evaluation_pb2.Score) -> Score:
    return Score(num_questions=proto.num_questions, accuracy=proto.accuracy)
