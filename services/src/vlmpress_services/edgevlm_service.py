"""Serves any image-text-to-text model of the store with edgevlm's engine."""
# ruff: noqa: N802 - gRPC methods keep the names of the protos.

from collections.abc import AsyncGenerator
from contextlib import aclosing

import grpc

from edgevlm.serving.engine import Engine
from edgevlm.wire import event_to_proto, request_from_proto
from vlmpress.edgevlm.v1 import edgevlm_service_pb2 as pb
from vlmpress.edgevlm.v1 import edgevlm_service_pb2_grpc as pb_grpc
from vlmpress_services.interceptors import Context
from vlmpress_services.model_host import ModelHost
from vlmpress_services.service import Host, Service


class EdgeVlmService(Service, pb_grpc.EdgeVlmServiceServicer):
    """Answers questions about images."""

    def __init__(self, models: ModelHost[Engine]) -> None:
        self._models = models

    def register(self, server: grpc.aio.Server) -> None:
        """Adds the servicer to a server."""
        pb_grpc.add_EdgeVlmServiceServicer_to_server(self, server)

    async def close(self) -> None:
        """Drops every model."""
        self._models.close()

    async def LoadModel(self, request: pb.LoadModelRequest, context: Context) -> pb.LoadModelResponse:
        """Loads a model, or finds it loaded, and says what it is."""
        async with self._models.lease(request.model) as loaded:
            engine = loaded.model
            return pb.LoadModelResponse(
                digest=loaded.digest, num_params=engine.num_params, model_type=engine.model_type
            )

    async def Generate(
        self, request: pb.GenerateRequest, context: Context
    ) -> AsyncGenerator[pb.GenerateResponse, None]:
        """Streams the answer token by token; a cancelled call stops at the next token."""
        arguments = request_from_proto(request)
        async with self._models.lease(request.model) as loaded:
            engine = loaded.model
            stream = loaded.executor.stream(lambda: engine.generate(*arguments))
            async with aclosing(stream) as events:
                async for event in events:
                    yield event_to_proto(event)


def build(host: Host) -> Service:
    """The service over the server's store."""
    return EdgeVlmService(ModelHost(host.store, Engine.load, host.max_models))
