"""Plans, calibration and budgets of visual tokens on the wire."""
# ruff: noqa: N802 - gRPC methods keep the names of the protos.

from collections.abc import AsyncIterator

import grpc

from tokenreduce import RunningCalibration, plan, plan_budget
from tokenreduce.wire import (
    budget_request_from_proto,
    budget_to_proto,
    features_from_proto,
    plans_to_proto,
    policy_from_proto,
    policy_to_proto,
    settings_from_proto,
)
from vlmpress.tokenreduce.v1 import tokenreduce_service_pb2 as pb
from vlmpress.tokenreduce.v1 import tokenreduce_service_pb2_grpc as pb_grpc
from vlmpress_services.errors import InvalidRequestError
from vlmpress_services.serving.executor import BoundedExecutor
from vlmpress_services.serving.interceptors import Context
from vlmpress_services.serving.service import Host, Service

# A calibration keeps some bytes of each: a call without end must not fill the memory.
MAX_CALIBRATION_IMAGES = 1_000_000


class TokenReduceService(Service, pb_grpc.TokenReduceServiceServicer):
    """Chooses pooling factors for images."""

    def __init__(self) -> None:
        self._executor = BoundedExecutor("tokenreduce")

    def register(self, server: grpc.aio.Server) -> None:
        """Adds the servicer to a server."""
        pb_grpc.add_TokenReduceServiceServicer_to_server(self, server)

    async def close(self) -> None:
        """Drops calls that wait."""
        self._executor.close()

    async def Plan(self, request: pb.PlanRequest, context: Context) -> pb.PlanResponse:
        """One plan an image, in the order of the features."""
        return await self._executor.run(_plan, request)

    async def Calibrate(
        self, request_iterator: AsyncIterator[pb.CalibrateRequest], context: Context
    ) -> pb.CalibrateResponse:
        """The policy for the images of all requests; only their sigmas are kept."""
        calibration: RunningCalibration | None = None
        async for request in request_iterator:
            calibration = await self._executor.run(_take_in, calibration, request)
        if calibration is None:
            raise InvalidRequestError("requests: expected at least one, got none")
        return await self._executor.run(_calibrated, calibration)

    async def Budget(self, request: pb.BudgetRequest, context: Context) -> pb.BudgetResponse:
        """One plan an image, in the order of the features, all of them within the limit."""
        return await self._executor.run(_budget, request)


def build(host: Host) -> Service:
    """The service; it needs nothing of its host."""
    return TokenReduceService()


def _plan(request: pb.PlanRequest) -> pb.PlanResponse:
    images, mean_tokens = plan(features_from_proto(request.features), policy_from_proto(request.policy))
    return plans_to_proto(images, mean_tokens)


def _take_in(calibration: RunningCalibration | None, request: pb.CalibrateRequest) -> RunningCalibration:
    if request.HasField("settings") is not (calibration is None):
        raise InvalidRequestError("settings: expected in the first request and only there")
    if calibration is None:
        calibration = RunningCalibration(settings_from_proto(request.settings))
    features = features_from_proto(request.features)
    if calibration.num_views + len(features) > MAX_CALIBRATION_IMAGES:
        raise InvalidRequestError(f"requests: expected at most {MAX_CALIBRATION_IMAGES} images, got more")
    calibration.add(features)
    return calibration


def _calibrated(calibration: RunningCalibration) -> pb.CalibrateResponse:
    return pb.CalibrateResponse(policy=policy_to_proto(calibration.policy()))


def _budget(request: pb.BudgetRequest) -> pb.BudgetResponse:
    return budget_to_proto(plan_budget(*budget_request_from_proto(request)))
