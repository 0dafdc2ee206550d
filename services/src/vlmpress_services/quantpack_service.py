"""Size figures and checks of the store's packs."""
# ruff: noqa: N802 - gRPC methods keep the names of the protos.

import asyncio

import grpc

from quantpack import CorruptPackError, inspect, verify
from quantpack.wire import part_report_to_proto
from vlmpress.artifact import Artifact
from vlmpress.quantpack.v1 import quantpack_service_pb2 as pb
from vlmpress.quantpack.v1 import quantpack_service_pb2_grpc as pb_grpc
from vlmpress_services.errors import one_line
from vlmpress_services.serving.executor import BoundedExecutor
from vlmpress_services.serving.interceptors import Context
from vlmpress_services.serving.service import Host, Service
from vlmpress_services.store.interface import ArtifactStore
from vlmpress_services.store.kinds import check_kind


class QuantpackService(Service, pb_grpc.QuantpackServiceServicer):
    """Reads packed models."""

    def __init__(self, store: ArtifactStore) -> None:
        self._store = store
        self._executor = BoundedExecutor("quantpack")

    def register(self, server: grpc.aio.Server) -> None:
        """Adds the servicer to a server."""
        pb_grpc.add_QuantpackServiceServicer_to_server(self, server)

    async def close(self) -> None:
        """Drops calls that wait."""
        self._executor.close()

    async def Inspect(self, request: pb.InspectRequest, context: Context) -> pb.InspectResponse:
        """Size figures of a pack."""
        artifact = await self._pack(request.artifact)
        parts = await self._executor.run(inspect, artifact.path)
        return pb.InspectResponse(
            scheme=artifact.manifest.quantized_model.scheme, parts=[part_report_to_proto(part) for part in parts]
        )

    async def Verify(self, request: pb.VerifyRequest, context: Context) -> pb.VerifyResponse:
        """Decodes every frame; a fault is an answer, not an error."""
        artifact = await self._pack(request.artifact)
        try:
            await self._executor.run(verify, artifact.path)
        except CorruptPackError as error:
            return pb.VerifyResponse(ok=False, fault=one_line(error, self._store.root))
        return pb.VerifyResponse(ok=True)

    async def _pack(self, ref: str) -> Artifact:
        artifact = await asyncio.to_thread(self._store.resolve, ref)
        check_kind("artifact", artifact, "quantized_model")
        return artifact


def build(host: Host) -> Service:
    """The service over the server's store."""
    return QuantpackService(host.store)
