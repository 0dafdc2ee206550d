"""Layer matching, and what the layers of a model say, on the wire."""
# ruff: noqa: N802 - gRPC methods keep the names of the protos.

import asyncio
import io
from pathlib import Path
from typing import Any

import grpc
import torch
from PIL import Image

from verbdistill import load_verbalizers, match_layers
from verbdistill.seeing.loading import load_model
from verbdistill.seeing.speaking import verbalize
from verbdistill.wire import kld_from_proto, matches_to_proto, scale_from_proto, speeches_to_proto
from vlmpress.artifact import Artifact
from vlmpress.verbdistill.v1 import verbdistill_service_pb2 as pb
from vlmpress.verbdistill.v1 import verbdistill_service_pb2_grpc as pb_grpc
from vlmpress_services.errors import InvalidRequestError
from vlmpress_services.serving.executor import BoundedExecutor
from vlmpress_services.serving.images import ImagesConfig, check_images
from vlmpress_services.serving.interceptors import Context
from vlmpress_services.serving.model_host import ModelHost
from vlmpress_services.serving.service import Host, Service
from vlmpress_services.store.interface import ArtifactStore
from vlmpress_services.store.kinds import check_kind

MAX_WORDS, MAX_LIKELIEST = 256, 64
DEFAULT_WORDS, DEFAULT_LIKELIEST = 16, 5


class Speaker:
    """A model with the verbalizers it was last asked through; for one thread at a time."""

    def __init__(self, path: Path) -> None:
        model, processor = load_model(path)
        self._model: Any = model.to("cuda" if torch.cuda.is_available() else "cpu").eval()
        self._processor = processor
        self._verbalizers: tuple[str, Any] = ("", None)

    def speak(self, verbalizers: Artifact, request: pb.VerbalizeRequest) -> pb.VerbalizeResponse:
        """What its layers say; the verbalizers' bytes are checked when they are loaded."""
        if self._verbalizers[0] != verbalizers.digest:
            loaded = load_verbalizers(verbalizers.path, self._model).to(self._model.device)
            self._verbalizers = (verbalizers.digest, loaded)
        speeches = verbalize(
            self._model,
            self._processor,
            self._verbalizers[1],
            _image(request.image),
            request.question,
            max_words=request.max_words or DEFAULT_WORDS,
            num_likeliest=request.num_likeliest or DEFAULT_LIKELIEST,
        )
        return speeches_to_proto(speeches)


class VerbDistillService(Service, pb_grpc.VerbDistillServiceServicer):
    """Draws teacher targets, and lets layers speak."""

    def __init__(self, store: ArtifactStore, models: ModelHost[Speaker], images: ImagesConfig) -> None:
        self._executor = BoundedExecutor("verbdistill")
        self._store, self._models, self._images = store, models, images

    def register(self, server: grpc.aio.Server) -> None:
        """Adds the servicer to a server."""
        pb_grpc.add_VerbDistillServiceServicer_to_server(self, server)

    async def close(self) -> None:
        """Drops calls that wait, and every model."""
        self._executor.close()
        self._models.close()

    async def MatchLayers(self, request: pb.MatchLayersRequest, context: Context) -> pb.MatchLayersResponse:
        """One teacher target for each student target; the same request gives the same draw."""
        return await self._executor.run(_match, request)

    async def Verbalize(self, request: pb.VerbalizeRequest, context: Context) -> pb.VerbalizeResponse:
        """What every target layer of a model would answer."""
        for field, most in (("max_words", MAX_WORDS), ("num_likeliest", MAX_LIKELIEST)):
            if getattr(request, field) > most:
                raise InvalidRequestError(f"{field}: expected at most {most}, got {getattr(request, field)}")
        if request.image:
            await asyncio.to_thread(check_images, [request.image], self._images)
        verbalizers = await asyncio.to_thread(self._store.resolve, request.verbalizers)
        check_kind("verbalizers", verbalizers, "verbalizers")
        async with self._models.lease(request.model) as loaded:
            return await loaded.executor.run(loaded.model.speak, verbalizers, request)


def build(host: Host) -> Service:
    """The service over the server's store."""
    models = ModelHost(host.store, Speaker, host.max_models)
    host.loaded.append(models.loaded)
    host.metrics.read("models_loaded", "Models in memory.", "service", lambda: {"verbdistill": len(models.loaded())})
    return VerbDistillService(host.store, models, host.images)


def _match(request: pb.MatchLayersRequest) -> pb.MatchLayersResponse:
    generator = torch.Generator().manual_seed(request.seed)
    matches = match_layers(kld_from_proto(request), scale=scale_from_proto(request), generator=generator)
    return matches_to_proto(matches)


def _image(data: bytes) -> Image.Image | None:
    if not data:
        return None
    try:
        return Image.open(io.BytesIO(data), formats=("PNG", "JPEG")).convert("RGB")
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise InvalidRequestError(f"image: expected a whole PNG or JPEG, got {len(data)} other bytes") from error
