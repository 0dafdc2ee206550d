"""Serves any image-text-to-text model of the store with edgevlm's engine."""
# ruff: noqa: N802 - gRPC methods keep the names of the protos.

import os
import time
from collections.abc import AsyncGenerator
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import grpc

from edgevlm.serving.batching import Batcher
from edgevlm.serving.engine import Engine
from edgevlm.serving.events import Finish
from edgevlm.serving.preparing import Prepared
from edgevlm.wire import event_to_proto, request_from_proto
from vlmpress.edgevlm.v1 import edgevlm_service_pb2 as pb
from vlmpress.edgevlm.v1 import edgevlm_service_pb2_grpc as pb_grpc
from vlmpress_services.serving.deadlines import time_left_s
from vlmpress_services.serving.generation import GenerationLoop
from vlmpress_services.serving.images import ImagesConfig, check_images
from vlmpress_services.serving.interceptors import Context
from vlmpress_services.serving.metrics import Metrics
from vlmpress_services.serving.model_host import ModelHost
from vlmpress_services.serving.service import Host, Service

MAX_PREPARING_THREADS = 4
MAX_MARGIN_S = 0.05


@dataclass(frozen=True, kw_only=True, slots=True)
class ServedModel:
    """A loaded model and the streams that share it."""

    engine: Engine
    loop: GenerationLoop

    @classmethod
    def load(cls, path: Path, max_batch: int) -> Self:
        """Loads a directory; errors as in `Engine.load`."""
        engine = Engine.load(path)
        return cls(engine=engine, loop=GenerationLoop(Batcher(engine, max_batch)))


class EdgeVlmService(Service, pb_grpc.EdgeVlmServiceServicer):
    """Answers questions about images."""

    def __init__(self, models: ModelHost[ServedModel], images: ImagesConfig, metrics: Metrics) -> None:
        self._models = models
        self._images = images
        self._metrics = metrics
        num_threads = min(MAX_PREPARING_THREADS, os.cpu_count() or 1)
        self._preparing = ThreadPoolExecutor(num_threads, thread_name_prefix="prepare")

    def register(self, server: grpc.aio.Server) -> None:
        """Adds the servicer to a server."""
        pb_grpc.add_EdgeVlmServiceServicer_to_server(self, server)

    async def close(self) -> None:
        """Drops every model."""
        self._models.close()
        self._preparing.shutdown(wait=False, cancel_futures=True)

    async def LoadModel(self, request: pb.LoadModelRequest, context: Context) -> pb.LoadModelResponse:
        """Loads a model, or finds it loaded, and says what it is."""
        async with self._models.lease(request.model) as loaded:
            engine = loaded.model.engine
            return pb.LoadModelResponse(
                digest=loaded.digest, num_params=engine.num_params, model_type=engine.model_type
            )

    async def Generate(
        self, request: pb.GenerateRequest, context: Context
    ) -> AsyncGenerator[pb.GenerateResponse, None]:
        """Streams the answer token by token; a cancelled call frees its place at the next token."""
        now_s = time.monotonic()
        asked = request_from_proto(request, now_s=now_s, call_deadline_s=_answer_until_s(context, now_s))
        async with self._models.lease(request.model) as loaded:
            served = loaded.model

            def prepare() -> Prepared:
                check_images(request.images, self._images)
                return served.engine.prepare_request(asked)

            num_tokens = 0
            async with aclosing(served.loop.stream(loaded.executor, self._preparing, prepare)) as events:
                async for event in events:
                    if not isinstance(event, Finish):
                        num_tokens += 1
                        self._count(num_tokens, now_s)
                    yield event_to_proto(event)

    def _count(self, num_tokens: int, start_s: float) -> None:
        if num_tokens == 1:
            self._metrics.first_token(time.monotonic() - start_s)
        self._metrics.token()


def build(host: Host) -> Service:
    """The service over the server's store."""
    models = ModelHost(host.store, lambda path: ServedModel.load(path, host.max_batch), host.max_models)
    host.loaded.append(models.loaded)
    host.metrics.read("models_loaded", "Models in memory.", "service", lambda: {"edgevlm": len(models.loaded())})
    return EdgeVlmService(models, host.images, host.metrics)


def _answer_until_s(context: Context, now_s: float) -> float | None:
    """When to end so that the end still reaches the caller before the call is ended; None: it is not."""
    left_s = time_left_s(context)
    return None if left_s is None else now_s + left_s - min(MAX_MARGIN_S, 0.1 * left_s)
