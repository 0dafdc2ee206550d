"""The store on the wire."""
# ruff: noqa: N802 - gRPC methods keep the names of the protos.

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import grpc

from vlmpress.artifact import Artifact, ArtifactError, ArtifactFaultError
from vlmpress.artifact.v1 import artifact_service_pb2 as pb
from vlmpress.artifact.v1 import artifact_service_pb2_grpc as pb_grpc
from vlmpress_services.errors import InvalidRequestError, NotFoundError
from vlmpress_services.serving.interceptors import Context
from vlmpress_services.serving.service import Host, Service
from vlmpress_services.store.local import LocalStore

CHUNK_BYTES = 1 << 20


class ArtifactService(Service, pb_grpc.ArtifactServiceServicer):
    """Reads and checks the artifacts of a store."""

    def __init__(self, store: LocalStore) -> None:
        self._store = store

    def register(self, server: grpc.aio.Server) -> None:
        """Adds the servicer to a server."""
        pb_grpc.add_ArtifactServiceServicer_to_server(self, server)

    async def GetManifest(self, request: pb.GetManifestRequest, context: Context) -> pb.GetManifestResponse:
        """The manifest of one artifact."""
        artifact = await asyncio.to_thread(self._store.resolve, request.artifact)
        return pb.GetManifestResponse(digest=artifact.digest, manifest=artifact.manifest)

    async def ListArtifacts(self, request: pb.ListArtifactsRequest, context: Context) -> pb.ListArtifactsResponse:
        """All artifacts, or those of one kind, by digest."""
        artifacts = await asyncio.to_thread(self._store.list, request.kind or None)
        tags = await asyncio.to_thread(self._store.tags)
        return pb.ListArtifactsResponse(artifacts=[_summary(artifact, tags) for artifact in artifacts])

    async def ReadFile(self, request: pb.ReadFileRequest, context: Context) -> AsyncIterator[pb.ReadFileResponse]:
        """The bytes of one file from an offset on, 1 MiB at a time."""
        artifact = await asyncio.to_thread(self._store.resolve, request.artifact)
        path, size = _file(artifact, request.path)
        if request.offset > size:
            raise InvalidRequestError(f"offset: expected at most {size}, got {request.offset}")
        offset = request.offset
        while offset < size:
            data = await asyncio.to_thread(_read, path, offset, min(CHUNK_BYTES, size - offset))
            yield pb.ReadFileResponse(offset=offset, data=data)
            offset += len(data)

    async def VerifyArtifact(self, request: pb.VerifyArtifactRequest, context: Context) -> pb.VerifyArtifactResponse:
        """Checks every byte; a fault is an answer, not an error."""
        try:
            await asyncio.to_thread(self._store.verify, request.artifact)
        except ArtifactError as error:
            fault = " ".join(str(error).replace(str(self._store.root), "store").split())
            return pb.VerifyArtifactResponse(ok=False, fault=fault)
        return pb.VerifyArtifactResponse(ok=True)


def build(host: Host) -> Service:
    """The service over the server's store."""
    return ArtifactService(host.store)


def _summary(artifact: Artifact, tags: dict[str, str]) -> pb.ArtifactSummary:
    names = [name for name, digest in tags.items() if digest == artifact.digest]
    return pb.ArtifactSummary(
        digest=artifact.digest, kind=artifact.manifest.kind, tags=names, size_bytes=artifact.size_bytes
    )


def _file(artifact: Artifact, name: str) -> tuple[Path, int]:
    for file in artifact.manifest.files:
        if file.path == name and ".." not in Path(name).parts:
            return artifact.path / name, file.size_bytes
    raise NotFoundError(f"artifact {artifact.digest}: has no file {name!r}")


def _read(path: Path, offset: int, size: int) -> bytes:
    try:
        with path.open("rb") as file:
            file.seek(offset)
            data = file.read(size)
    except FileNotFoundError:
        data = b""
    if len(data) != size:
        raise ArtifactFaultError(f"{path}: expected {size} bytes at {offset}, got {len(data)}")
    return data
