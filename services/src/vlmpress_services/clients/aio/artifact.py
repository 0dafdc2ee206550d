"""Reads and writes a server's artifacts."""

import asyncio
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from pathlib import Path

from vlmpress.artifact import Artifact, ArtifactFaultError, read
from vlmpress.artifact.v1 import artifact_pb2, artifact_service_pb2
from vlmpress_services.clients import artifact_calls as calls
from vlmpress_services.clients.aio.channel import Client
from vlmpress_services.clients.artifact import OnProgress, quiet
from vlmpress_services.clients.artifact_files import MAX_UNANSWERED, FileCursor, Sending, check_answer, chunk_requests
from vlmpress_services.clients.channel import typed_errors
from vlmpress_services.clients.retries import Breaks
from vlmpress_services.errors import ServiceError
from vlmpress_services.store.checksum import crc32c
from vlmpress_services.store.interface import ArtifactStore, Described
from vlmpress_services.store.names import is_digest


class ArtifactClient(Client):
    """Reads, writes, names and deletes a server's artifacts."""

    async def manifest(self, ref: str) -> tuple[str, artifact_pb2.Manifest]:
        """Digest and manifest of an artifact; raises ServiceError."""
        return await self._call(calls.manifest_call(ref))

    async def list(self, kind: str = "") -> list[artifact_service_pb2.ArtifactSummary]:
        """One line an artifact; raises ServiceError."""
        return await self._pages(lambda token: calls.list_call(kind, token))

    async def read_file(self, ref: str, path: str, offset: int = 0) -> AsyncGenerator[bytes, None]:
        """The bytes of a file from an offset on, piece by piece, each checked; goes on where a connection broke.

        Raises:
            ServiceError: There is no such file, a piece was changed on its way, or the server stays away.
        """
        # A tag may move between two connections.
        digest = ref if is_digest(ref) else (await self.manifest(ref))[0]
        async with aclosing(self._resume(FileCursor(digest, path, offset).call)) as pieces:
            async for data in pieces:
                yield data

    async def verify(self, ref: str) -> str:
        """Checks every byte on the server; the fault in one line, empty when there is none; raises ServiceError."""
        return await self._call(calls.verify_call(ref))

    async def tags(self) -> dict[str, str]:
        """Digest of every tag, by name; raises ServiceError."""
        return await self._call(calls.tags_call())

    async def tag(self, name: str, digest: str, expected: str | None = None) -> None:
        """Points a tag at an artifact; arguments and errors are those of the synchronous client."""
        await self._call(calls.tag_call(name, digest, expected))

    async def untag(self, name: str, expected: str | None = None) -> bool:
        """Removes a tag, False when there is none; `expected` and errors as `tag`."""
        return await self._call(calls.untag_call(name, expected))

    async def collect_garbage(
        self, min_age_s: float | None = None, *, dry_run: bool = False
    ) -> Sequence[artifact_service_pb2.ArtifactSummary]:
        """What the server deleted, or would; nothing younger than `min_age_s` (None: a day); raises ServiceError."""
        return await self._call(calls.garbage_call(min_age_s, dry_run))

    async def push(self, directory: Path, tag: str = "", on_progress: OnProgress = quiet) -> str:
        """Writes an artifact directory to the server and gives its digest; what is there is not sent again.

        Arguments, errors and what is sent twice are those of the synchronous client.
        """
        artifact = await asyncio.to_thread(read, directory)
        sending, breaks = Sending(artifact), Breaks()
        while True:
            try:
                answer = await self._call(sending.start())
                for file, offset in sending.missing(answer):
                    async with aclosing(self._write(artifact, file, offset)) as ends:
                        async for end in ends:
                            breaks.reset()
                            on_progress(sending.done(file, end), artifact.size_bytes)
                await self._call(calls.commit_call(artifact.digest, tag))
                return artifact.digest
            except ServiceError as error:
                pause_s = sending.pause_s(error, breaks)
            await asyncio.sleep(pause_s)

    async def pull(self, ref: str, store: ArtifactStore, tag: str = "", on_progress: OnProgress = quiet) -> Described:
        """Reads an artifact into a store; what an earlier try left there is not read again.

        Arguments and errors are those of the synchronous client.
        """
        digest, manifest = await self.manifest(ref)
        _, files = await asyncio.to_thread(store.start_write, check_answer(digest, manifest))
        done = sum(file.persisted_size for file in files or ())
        total = sum(file.size_bytes for file in manifest.files)
        for file, status in zip(manifest.files, files or (), strict=bool(files)):
            if status.persisted_size == file.size_bytes:
                continue
            offset = status.persisted_size
            with store.uploads.open(digest, file.path) as part:
                async with aclosing(self._resume(FileCursor(digest, file.path, offset).call)) as pieces:
                    async for data in pieces:
                        offset = await asyncio.to_thread(part.write, offset, data, crc32c(data))
                        done += len(data)
                        on_progress(done, total)
        artifact = await asyncio.to_thread(store.commit_write, digest)
        if tag:
            await asyncio.to_thread(store.tag, tag, digest)
        return artifact

    async def _write(self, artifact: Artifact, file: artifact_pb2.File, offset: int) -> AsyncGenerator[int, None]:
        """Sends a file from an offset on and gives what is persisted, chunk by chunk."""
        may_send = asyncio.Semaphore(MAX_UNANSWERED)
        ended = asyncio.Event()
        # What is raised in gRPC's task would be lost there.
        faults: list[Exception] = []

        async def requests() -> AsyncGenerator[bytes, None]:
            chunks = chunk_requests(artifact, file, offset)
            try:
                while (request := await asyncio.to_thread(next, chunks, None)) is not None:
                    await may_send.acquire()
                    if ended.is_set():
                        return
                    yield request
            except (OSError, ArtifactFaultError) as error:
                faults.append(error)

        with typed_errors():
            responses = self._stub(calls.write_file)(requests())
            try:
                async for response in responses:
                    may_send.release()
                    yield response.persisted_size
                if faults:
                    raise faults[0]
            finally:
                ended.set()
                may_send.release()
                responses.cancel()
