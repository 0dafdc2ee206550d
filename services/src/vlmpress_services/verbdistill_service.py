"""Layer matching on the wire."""
# ruff: noqa: N802 - gRPC methods keep the names of the protos.

import grpc
import torch

from verbdistill import match_layers
from verbdistill.wire import kld_from_proto, matches_to_proto, scale_from_proto
from vlmpress.verbdistill.v1 import verbdistill_service_pb2 as pb
from vlmpress.verbdistill.v1 import verbdistill_service_pb2_grpc as pb_grpc
from vlmpress_services.executor import BoundedExecutor
from vlmpress_services.interceptors import Context
from vlmpress_services.service import Host, Service


class VerbDistillService(Service, pb_grpc.VerbDistillServiceServicer):
    """Draws teacher targets."""

    def __init__(self) -> None:
        self._executor = BoundedExecutor("verbdistill")

    def register(self, server: grpc.aio.Server) -> None:
        """Adds the servicer to a server."""
        pb_grpc.add_VerbDistillServiceServicer_to_server(self, server)

    async def close(self) -> None:
        """Drops calls that wait."""
        self._executor.close()

    async def MatchLayers(self, request: pb.MatchLayersRequest, context: Context) -> pb.MatchLayersResponse:
        """One teacher target for each student target; the same request gives the same draw."""
        return await self._executor.run(_match, request)


def build(host: Host) -> Service:
    """The service; it needs nothing of its host."""
    return VerbDistillService()


def _match(request: pb.MatchLayersRequest) -> pb.MatchLayersResponse:
    generator = torch.Generator().manual_seed(request.seed)
    matches = match_layers(kld_from_proto(request), scale=scale_from_proto(request), generator=generator)
    return matches_to_proto(matches)
