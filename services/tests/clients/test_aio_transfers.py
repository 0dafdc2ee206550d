"""The asyncio client pushes and pulls as the synchronous one does; `test_transfers.py` has the rest."""

import os
from pathlib import Path
from typing import Any

import grpc
import pytest

from vlmpress.artifact import Artifact, ArtifactFaultError, create
from vlmpress.artifact.v1 import artifact_pb2
from vlmpress_services.artifact_service import ArtifactService
from vlmpress_services.clients.aio import ArtifactClient
from vlmpress_services.errors import ServiceError
from vlmpress_services.serving.server import Server, ServerConfig
from vlmpress_services.store.local import LocalStore

MIB = 1 << 20


class Breaking(ArtifactService):
    """Breaks every stream of files after two messages."""

    num_streams = 0

    async def WriteFile(self, request_iterator: Any, context: Any) -> Any:  # noqa: N802
        async for response in self._broken(super().WriteFile(request_iterator, context), context):
            yield response

    async def ReadFile(self, request: Any, context: Any) -> Any:  # noqa: N802
        async for response in self._broken(super().ReadFile(request, context), context):
            yield response

    async def _broken(self, responses: Any, context: Any) -> Any:
        self.num_streams += 1
        num = 0
        async for response in responses:
            yield response
            num += 1
            if num == 2:
                await context.abort(grpc.StatusCode.UNAVAILABLE, "broken")


@pytest.fixture
def made(tmp_path: Path) -> Artifact:
    with create(tmp_path / "made") as draft:
        (draft.path / "big").write_bytes(os.urandom(5 * MIB + 17))
        (draft.path / "small").write_bytes(b"hello")
        (draft.path / "none").touch()
        return draft.commit(artifact_pb2.Log(source="test"), producer=("test", "0"))


@pytest.fixture
def here(tmp_path: Path) -> LocalStore:
    """A store on the client's side."""
    return LocalStore(tmp_path / "here")


async def test_an_artifact_goes_there_and_back_over_broken_streams(
    listen: Any, store: LocalStore, made: Artifact, here: LocalStore
) -> None:
    service = Breaking(store)
    seen: list[tuple[int, int]] = []
    async with listen(service.register) as address, ArtifactClient(address) as client:
        assert await client.push(made.path, "it", lambda *at: seen.append(at)) == made.digest
        assert service.num_streams == 7  # two chunks of half a MiB each of one file, the last alone, and the other file
        assert seen[-1] == (made.size_bytes, made.size_bytes)
        assert store.verify("it").manifest == made.manifest
        pulled = await client.pull("it", here, "mine")
        assert (pulled.digest, here.verify("mine").manifest) == (made.digest, made.manifest)
        pieces = [data async for data in client.read_file("it", "big", 3)]
        assert b"".join(pieces) == (made.path / "big").read_bytes()[3:]
        assert await client.push(made.path) == made.digest


async def test_a_changed_file_is_refused(store: LocalStore, made: Artifact) -> None:
    server = Server(ServerConfig(listen="127.0.0.1:0", store=store.root, services=("artifact",)))
    await server.start()
    async with ArtifactClient(server.address) as client:
        (made.path / "small").write_bytes(b"jello")
        with pytest.raises(ServiceError, match="SHA-256"):
            await client.push(made.path)
        (made.path / "small").write_bytes(b"he")
        with pytest.raises(ArtifactFaultError, match="expected 5 bytes, got 2"):
            await client.push(made.path)
    await server.stop(0.2)
    assert store.digests() == ()


async def test_tags_lists_and_garbage(store: LocalStore, add_log: Any) -> None:
    first, second = add_log("a").digest, add_log("b").digest
    server = Server(ServerConfig(listen="127.0.0.1:0", store=store.root, services=("artifact",)))
    await server.start()
    async with ArtifactClient(server.address) as client:
        await client.tag("it", first, "")
        with pytest.raises(ServiceError) as caught:
            await client.tag("it", second, "")
        assert (caught.value.code, caught.value.metadata) == ("ABORTED", {"found": first})
        assert caught.value.request_id
        assert await client.tags() == {"it": first}
        assert (await client.manifest("it"))[0] == first
        assert {row.digest for row in await client.list("log")} == {first, second}
        assert await client.verify("it") == ""
        assert await client.untag("it", first)
        assert {row.digest for row in await client.collect_garbage(0)} == {first, second}
    await server.stop(0.2)
