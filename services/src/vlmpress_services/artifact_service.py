"""The store on the wire."""
# ruff: noqa: N802 - gRPC methods keep the names of the protos.

import asyncio
import errno
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import ExitStack
from typing import ParamSpec, TypeVar

import grpc

from vlmpress.artifact import ArtifactError, check_files
from vlmpress.artifact.v1 import artifact_service_pb2 as pb
from vlmpress.artifact.v1 import artifact_service_pb2_grpc as pb_grpc
from vlmpress_services.errors import ConflictError, InvalidRequestError, NotFoundError, StoreFullError, one_line
from vlmpress_services.garbage import roots
from vlmpress_services.serving.interceptors import Context
from vlmpress_services.serving.service import Host, Service
from vlmpress_services.store.checksum import crc32c
from vlmpress_services.store.interface import ArtifactStore, Described, Expected
from vlmpress_services.store.names import check_digest, check_tag
from vlmpress_services.store.uploads import FileStatus

CHUNK_BYTES = 1 << 20
DEFAULT_PAGE_SIZE = 100
MAX_PAGE_SIZE = 1000
FULL = (errno.ENOSPC, errno.EDQUOT)

P = ParamSpec("P")
T = TypeVar("T")


class ArtifactService(Service, pb_grpc.ArtifactServiceServicer):
    """Reads, checks, writes, names and deletes the artifacts of a store.

    Args:
        store: Where they are.
        loaded: Digests of what this server holds in memory, which garbage collection leaves.
    """

    def __init__(self, store: ArtifactStore, loaded: Callable[[], Iterable[str]] = tuple) -> None:
        self._store = store
        self._loaded = loaded

    def register(self, server: grpc.aio.Server) -> None:
        """Adds the servicer to a server."""
        pb_grpc.add_ArtifactServiceServicer_to_server(self, server)

    async def GetManifest(self, request: pb.GetManifestRequest, context: Context) -> pb.GetManifestResponse:
        """The manifest of one artifact."""
        artifact = await asyncio.to_thread(self._store.find, request.artifact)
        return pb.GetManifestResponse(digest=artifact.digest, manifest=artifact.manifest)

    async def ListArtifacts(self, request: pb.ListArtifactsRequest, context: Context) -> pb.ListArtifactsResponse:
        """Artifacts by digest, or those of one kind, a page at a time."""
        if request.page_size > MAX_PAGE_SIZE:
            raise InvalidRequestError(f"page_size: expected at most {MAX_PAGE_SIZE}, got {request.page_size}")
        if request.page_token:
            check_digest(request.page_token, "page_token")
        size = request.page_size or DEFAULT_PAGE_SIZE
        rows, token = await asyncio.to_thread(self._store.page, request.kind or None, size, request.page_token)
        return pb.ListArtifactsResponse(artifacts=await self._summaries(rows), next_page_token=token)

    async def ReadFile(self, request: pb.ReadFileRequest, context: Context) -> AsyncIterator[pb.ReadFileResponse]:
        """Some of the bytes of one file, 1 MiB at a time."""
        artifact = await asyncio.to_thread(self._store.find, request.artifact)
        size = _size(artifact, request.path)
        if request.offset > size:
            raise InvalidRequestError(f"offset: expected at most {size}, got {request.offset}")
        offset, end = request.offset, min(size, request.offset + (request.length or size))

        def chunk() -> pb.ReadFileResponse:
            data = self._store.read(artifact.digest, request.path, offset, min(CHUNK_BYTES, end - offset))
            return pb.ReadFileResponse(offset=offset, data=data, crc32c=crc32c(data))

        while offset < end:
            response = await asyncio.to_thread(chunk)
            yield response
            offset += len(response.data)

    async def VerifyArtifact(self, request: pb.VerifyArtifactRequest, context: Context) -> pb.VerifyArtifactResponse:
        """Checks every byte; a fault is an answer, not an error."""
        try:
            await asyncio.to_thread(self._store.verify, request.artifact)
        except ArtifactError as error:
            return pb.VerifyArtifactResponse(ok=False, fault=one_line(error, self._store.root))
        return pb.VerifyArtifactResponse(ok=True)

    async def StartWrite(self, request: pb.StartWriteRequest, context: Context) -> pb.StartWriteResponse:
        """Begins a write, or finds the one that has begun."""
        if not request.manifest_json:
            raise InvalidRequestError("manifest_json: expected a manifest, got none")
        digest, files = await _write(self._store.start_write, request.manifest_json)
        return pb.StartWriteResponse(digest=digest, already_there=files is None, files=_statuses(files or []))

    async def WriteFile(
        self, request_iterator: AsyncIterator[pb.WriteFileRequest], context: Context
    ) -> AsyncIterator[pb.WriteFileResponse]:
        """Persists the chunks of one file, and answers each."""
        first = await anext(request_iterator, None)
        if first is None:
            raise InvalidRequestError("WriteFile: expected a chunk, got none")
        try:
            with ExitStack() as opened:
                part = await _write(opened.enter_context, self._store.uploads.open(first.digest, first.path))
                request: pb.WriteFileRequest | None = first
                while request is not None:
                    if request.digest not in ("", first.digest) or request.path not in ("", first.path):
                        raise InvalidRequestError(f"{first.path}: expected one file a call, got {request.path[:160]!r}")
                    size = await _write(part.write, request.offset, request.data, request.crc32c)
                    yield pb.WriteFileResponse(persisted_size=size)
                    request = await anext(request_iterator, None)
        except NotFoundError:
            if not await asyncio.to_thread(self._store.has, first.digest):
                raise
            raise ConflictError(f"artifact {first.digest}: expected no more chunks, another client wrote it") from None

    async def QueryWriteStatus(
        self, request: pb.QueryWriteStatusRequest, context: Context
    ) -> pb.QueryWriteStatusResponse:
        """How much of a write is persisted."""
        check_digest(request.digest)
        if await asyncio.to_thread(self._store.has, request.digest):
            return pb.QueryWriteStatusResponse(committed=True)
        files = await asyncio.to_thread(self._store.uploads.status, request.digest)
        return pb.QueryWriteStatusResponse(files=_statuses(files))

    async def CommitWrite(self, request: pb.CommitWriteRequest, context: Context) -> pb.CommitWriteResponse:
        """Makes a whole write an artifact, and points a tag at it."""
        if request.tag:
            check_tag(request.tag)
        artifact = await _write(self._store.commit_write, request.digest)
        if request.tag:
            await _write(self._store.tag, request.tag, artifact.digest)
        (summary,) = await self._summaries([artifact])
        return pb.CommitWriteResponse(artifact=summary)

    async def AbandonWrite(self, request: pb.AbandonWriteRequest, context: Context) -> pb.AbandonWriteResponse:
        """Drops what was written of an artifact that is not committed."""
        return pb.AbandonWriteResponse(abandoned=await asyncio.to_thread(self._store.uploads.abandon, request.digest))

    async def ListTags(self, request: pb.ListTagsRequest, context: Context) -> pb.ListTagsResponse:
        """All tags, by name."""
        tags = await asyncio.to_thread(self._store.tags)
        return pb.ListTagsResponse(tags=[pb.Tag(name=name, digest=digest) for name, digest in sorted(tags.items())])

    async def SetTag(self, request: pb.SetTagRequest, context: Context) -> pb.SetTagResponse:
        """Points a tag at an artifact."""
        await _write(self._store.tag, request.name, request.digest, _expected(request))
        return pb.SetTagResponse()

    async def DeleteTag(self, request: pb.DeleteTagRequest, context: Context) -> pb.DeleteTagResponse:
        """Removes a tag, not the artifact."""
        return pb.DeleteTagResponse(deleted=await _write(self._store.untag, request.name, _expected(request)))

    async def CollectGarbage(self, request: pb.CollectGarbageRequest, context: Context) -> pb.CollectGarbageResponse:
        """Deletes the artifacts that nothing leads to."""
        if not request.HasField("min_age"):
            raise InvalidRequestError("min_age: expected a duration, got none")
        min_age_s = request.min_age.seconds + request.min_age.nanos / 1e9
        if min_age_s < 0:
            raise InvalidRequestError(f"min_age: expected at least 0 s, got {min_age_s:g}")
        loaded = set(self._loaded())

        def collect() -> list[Described]:
            found = self._store.collect_garbage(
                lambda: roots(self._store.root) | loaded, min_age_s, dry_run=request.dry_run
            )
            return list(found)

        return pb.CollectGarbageResponse(artifacts=await self._summaries(await _write(collect)))

    async def _summaries(self, artifacts: Iterable[Described]) -> list[pb.ArtifactSummary]:
        tags = await asyncio.to_thread(self._store.tags)
        return [_summary(artifact, tags) for artifact in artifacts]


def build(host: Host) -> Service:
    """The service over the server's store."""
    return ArtifactService(host.store, lambda: [digest for loaded in host.loaded for digest in loaded()])


async def _write(function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Runs what changes the store in a thread; a full disk is an error that clients may know of."""
    try:
        return await asyncio.to_thread(function, *args, **kwargs)
    except OSError as error:
        if error.errno not in FULL:
            raise
        raise StoreFullError("store: no space left; nothing half-written is kept") from error


def _summary(artifact: Described, tags: dict[str, str]) -> pb.ArtifactSummary:
    names = [name for name, digest in tags.items() if digest == artifact.digest]
    return pb.ArtifactSummary(
        digest=artifact.digest, kind=artifact.manifest.kind, tags=names, size_bytes=artifact.size_bytes
    )


def _statuses(files: Iterable[FileStatus]) -> list[pb.FileStatus]:
    return [pb.FileStatus(path=file.path, persisted_size=file.persisted_size) for file in files]


def _expected(request: pb.SetTagRequest | pb.DeleteTagRequest) -> Expected | None:
    return Expected(request.expected or None) if request.HasField("expected") else None


def _size(artifact: Described, name: str) -> int:
    check_files(artifact.manifest)  # so that a forged path leads nowhere
    for file in artifact.manifest.files:
        if file.path == name:
            return file.size_bytes
    raise NotFoundError(f"artifact {artifact.digest}: has no file {name[:160]!r}")
