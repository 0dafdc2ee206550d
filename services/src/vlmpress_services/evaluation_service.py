"""Scoring on the wire."""
# ruff: noqa: N802 - gRPC methods keep the names of the protos.

import asyncio

import grpc

from vlmpress.evaluation.v1 import evaluation_pb2
from vlmpress.evaluation.v1 import evaluation_service_pb2 as pb
from vlmpress.evaluation.v1 import evaluation_service_pb2_grpc as pb_grpc
from vlmpress_services.scoring import Prediction, Score, score
from vlmpress_services.serving.interceptors import Context
from vlmpress_services.serving.service import Host, Service


class EvaluationService(Service, pb_grpc.EvaluationServiceServicer):
    """Scores answers."""

    def register(self, server: grpc.aio.Server) -> None:
        """Adds the servicer to a server."""
        pb_grpc.add_EvaluationServiceServicer_to_server(self, server)

    async def ScorePredictions(
        self, request: pb.ScorePredictionsRequest, context: Context
    ) -> pb.ScorePredictionsResponse:
        """Exact-match accuracy over all predictions and by question type."""
        predictions = [_prediction_from_proto(item) for item in request.predictions]
        scores = await asyncio.to_thread(score, predictions)
        return pb.ScorePredictionsResponse(
            score=_score_to_proto(scores.overall),
            score_by_type={name: _score_to_proto(value) for name, value in scores.by_type.items()},
        )


def build(host: Host) -> Service:
    """The service; it needs nothing of its host."""
    return EvaluationService()


def _prediction_from_proto(proto: evaluation_pb2.Prediction) -> Prediction:
    return Prediction(
        index=proto.index, question_type=proto.question_type, expected=proto.expected, answer=proto.answer
    )


def _score_to_proto(value: Score) -> evaluation_pb2.Score:
    return evaluation_pb2.Score(num_questions=value.num_questions, accuracy=value.accuracy)
