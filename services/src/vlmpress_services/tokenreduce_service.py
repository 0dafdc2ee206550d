"""Plans of visual-token reduction on the wire."""
# ruff: noqa: N802 - gRPC methods keep the names of the protos.

import grpc

from tokenreduce import plan
from tokenreduce.wire import features_from_proto, plans_to_proto, policy_from_proto
from vlmpress.tokenreduce.v1 import tokenreduce_service_pb2 as pb
from vlmpress.tokenreduce.v1 import tokenreduce_service_pb2_grpc as pb_grpc
from vlmpress_services.executor import BoundedExecutor
from vlmpress_services.interceptors import Context
from vlmpress_services.service import Host, Service


class TokenReduceService(Service, pb_grpc.TokenReduceServiceServicer):
    """Chooses a pooling factor for each image."""

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


def build(host: Host) -> Service:
    """The service; it needs nothing of its host."""
    return TokenReduceService()


def _plan(request: pb.PlanRequest) -> pb.PlanResponse:
    images, mean_tokens = plan(features_from_proto(request.features), policy_from_proto(request.policy))
    return plans_to_proto(images, mean_tokens)
