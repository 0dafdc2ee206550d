"""Plans of staged training on the wire."""
# ruff: noqa: N802 - gRPC methods keep the names of the protos.

import grpc

from stagetrain import plan_schedule
from stagetrain.wire import cost_to_proto, schedule_to_proto
from vlmpress.stagetrain.v1 import stagetrain_service_pb2 as pb
from vlmpress.stagetrain.v1 import stagetrain_service_pb2_grpc as pb_grpc
from vlmpress_services.executor import BoundedExecutor
from vlmpress_services.interceptors import Context
from vlmpress_services.service import Host, Service


class StageTrainService(Service, pb_grpc.StageTrainServiceServicer):
    """Stages and costs of named schemes."""

    def __init__(self) -> None:
        self._executor = BoundedExecutor("stagetrain")

    def register(self, server: grpc.aio.Server) -> None:
        """Adds the servicer to a server."""
        pb_grpc.add_StageTrainServiceServicer_to_server(self, server)

    async def close(self) -> None:
        """Drops calls that wait."""
        self._executor.close()

    async def PlanSchedule(self, request: pb.PlanScheduleRequest, context: Context) -> pb.PlanScheduleResponse:
        """The scheme's stages for a decoder of this depth, and what each costs."""
        schedule, costs = await self._executor.run(
            plan_schedule, request.scheme, request.num_layers, request.num_visual_tokens
        )
        return pb.PlanScheduleResponse(
            schedule=schedule_to_proto(schedule), costs=[cost_to_proto(cost) for cost in costs]
        )


def build(host: Host) -> Service:
    """The service; it needs nothing of its host."""
    return StageTrainService()
