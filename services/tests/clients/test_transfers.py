"""Pushing and pulling artifacts through a proxy that breaks connections, and past other faults."""

import asyncio
import os
import random
import socket
import threading
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from vlmpress.artifact import Artifact, ArtifactFaultError, create
from vlmpress.artifact.v1 import artifact_pb2
from vlmpress_services.clients import ArtifactClient, aio
from vlmpress_services.errors import ServiceError
from vlmpress_services.serving.server import Server, ServerConfig
from vlmpress_services.store.checksum import crc32c
from vlmpress_services.store.local import LocalStore

MIB = 1 << 20


class BreakingProxy:
    """Passes connections on to a server, and cuts one whenever some bytes have gone one way."""

    def __init__(self, target: str, cuts: list[int], *, counts_answers: bool = False) -> None:
        host, _, port = target.rpartition(":")
        self._target = (host, int(port))
        self._cuts = cuts
        self._counts_answers = counts_answers
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.address = f"127.0.0.1:{self._listener.getsockname()[1]}"
        self.num_bytes = 0
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        self._listener.close()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            server = socket.create_connection(self._target)
            for source, target in ((client, server), (server, client)):
                counted = (source is server) == self._counts_answers
                threading.Thread(target=self._pass, args=(source, target, counted), daemon=True).start()

    def _pass(self, source: socket.socket, target: socket.socket, counted: bool) -> None:
        with suppress(OSError):
            while data := source.recv(65536):
                if counted:
                    self.num_bytes += len(data)
                    if self._cuts and self.num_bytes >= self._cuts[0]:
                        self._cuts.pop(0)
                        break
                target.sendall(data)
        for end in (source, target):
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)


@pytest.fixture
async def address(store: LocalStore) -> Any:
    server = Server(ServerConfig(listen="127.0.0.1:0", store=store.root, services=("artifact",)))
    await server.start()
    yield server.address
    await server.stop(0.2)


@pytest.fixture
def made(tmp_path: Path) -> Artifact:
    with create(tmp_path / "made") as draft:
        (draft.path / "sub").mkdir()
        (draft.path / "sub" / "big").write_bytes(os.urandom(5 * MIB + 17))
        (draft.path / "small").write_bytes(b"hello")
        (draft.path / "none").write_bytes(b"")
        return draft.commit(artifact_pb2.Log(source="test"), producer=("test", "0"))


@pytest.fixture
def here(tmp_path: Path) -> LocalStore:
    """A store on the client's side."""
    return LocalStore(tmp_path / "here")


async def test_an_artifact_goes_there_and_back(
    address: str, store: LocalStore, made: Artifact, here: LocalStore
) -> None:
    seen: list[tuple[int, int]] = []

    def work() -> None:
        with ArtifactClient(address) as client:
            assert client.push(made.path, "it", lambda *at: seen.append(at)) == made.digest
            assert client.push(made.path) == made.digest
            assert client.tags() == {"it": made.digest}
            pulled = client.pull("it", here, "mine")
            assert (pulled.digest, here.tags()) == (made.digest, {"mine": made.digest})
            assert client.pull("it", here).digest == made.digest

    await asyncio.to_thread(work)
    assert seen[-1] == (5 * MIB + 22, 5 * MIB + 22)
    assert [done for done, _ in seen] == sorted(done for done, _ in seen)
    assert store.verify("it").manifest == here.verify("mine").manifest == made.manifest
    assert not list((here.root / "uploads").iterdir())


async def test_a_push_goes_on_where_it_broke(address: str, store: LocalStore, made: Artifact) -> None:
    chance = random.Random(0)
    cuts = sorted(chance.randrange(MIB // 2, 5 * MIB) for _ in range(4))
    proxy = BreakingProxy(address, cuts)
    with ArtifactClient(proxy.address) as client:
        await asyncio.to_thread(client.push, made.path)
    proxy.close()
    assert not cuts
    assert store.verify(made.digest).manifest == made.manifest
    # At most one chunk again for each break, and what the calls themselves take.
    assert proxy.num_bytes < made.size_bytes + 4 * (MIB + 65536) + 65536


async def test_a_pull_goes_on_where_another_ended(
    address: str, store: LocalStore, made: Artifact, here: LocalStore
) -> None:
    store.add(made.path)
    with ArtifactClient(address) as client:
        reader = client.read_file(made.digest, "sub/big")

        def first_part() -> None:
            here.start_write((made.path / "manifest.json").read_bytes())
            data = next(reader)
            with here.uploads.open(made.digest, "sub/big") as part:
                part.write(0, data, crc32c(data))

        await asyncio.to_thread(first_part)
        progress: list[int] = []
        await asyncio.to_thread(client.pull, made.digest, here, "", lambda done, total: progress.append(done))
    assert progress[0] > MIB
    assert here.verify(made.digest).manifest == made.manifest


@pytest.mark.parametrize("is_async", [False, True])
async def test_a_pull_goes_on_where_its_connections_broke(
    address: str, store: LocalStore, made: Artifact, here: LocalStore, is_async: bool
) -> None:
    store.add(made.path)
    cuts = [MIB // 2, 2 * MIB, 4 * MIB]
    proxy = BreakingProxy(address, cuts, counts_answers=True)
    if is_async:
        async with aio.ArtifactClient(proxy.address) as asyncio_client:
            await asyncio_client.pull(made.digest, here)
    else:
        with ArtifactClient(proxy.address) as client:
            await asyncio.to_thread(client.pull, made.digest, here)
    proxy.close()
    assert not cuts
    assert here.verify(made.digest).manifest == made.manifest
    assert proxy.num_bytes < made.size_bytes + 3 * (MIB + 65536) + 65536


async def test_a_changed_file_is_refused(address: str, store: LocalStore, made: Artifact) -> None:
    (made.path / "small").write_bytes(b"jello")
    with ArtifactClient(address) as client:
        with pytest.raises(ServiceError, match="SHA-256"):
            await asyncio.to_thread(client.push, made.path)
        (made.path / "small").write_bytes(b"he")
        with pytest.raises(ArtifactFaultError, match="expected 5 bytes, got 2"):
            await asyncio.to_thread(client.push, made.path)
    assert store.digests() == ()


async def test_a_damaged_artifact_is_not_pulled(
    address: str, store: LocalStore, made: Artifact, here: LocalStore
) -> None:
    there = store.add(made.path)
    (there.path / "small").write_bytes(b"jello")
    with ArtifactClient(address) as client, pytest.raises(ArtifactFaultError, match="SHA-256"):
        await asyncio.to_thread(client.pull, made.digest, here)
    assert here.digests() == ()


async def test_tags_and_garbage(address: str, store: LocalStore, add_log: Any) -> None:
    first, second = add_log("a").digest, add_log("b").digest

    def work() -> None:
        with ArtifactClient(address) as client:
            client.tag("it", first, "")
            with pytest.raises(ServiceError) as caught:
                client.tag("it", second, "")
            assert (caught.value.code, caught.value.metadata) == ("ABORTED", {"found": first})
            assert client.collect_garbage() == []
            assert [row.digest for row in client.collect_garbage(0, dry_run=True)] == [second]
            assert client.untag("it", first)
            assert not client.untag("it")
            assert {row.digest for row in client.collect_garbage(0)} == {first, second}

    await asyncio.to_thread(work)
    assert store.digests() == ()


async def test_asyncio_does_the_same(address: str, store: LocalStore, made: Artifact, here: LocalStore) -> None:
    seen: list[tuple[int, int]] = []
    async with aio.ArtifactClient(address) as client:
        assert await client.push(made.path, "it", lambda *at: seen.append(at)) == made.digest
        assert seen[-1] == (made.size_bytes, made.size_bytes)
        assert (await client.pull("it", here, "mine")).digest == made.digest
        assert (await client.pull("it", here)).digest == made.digest
        assert b"".join([data async for data in client.read_file("it", "small", 1)]) == b"ello"
        assert [row.digest for row in await client.list()] == [made.digest]
        assert (await client.tags(), await client.verify("it")) == ({"it": made.digest}, "")
        with pytest.raises(ServiceError, match="ABORTED"):
            await client.untag("it", "0" * 64)
        assert await client.untag("it")
        assert [row.digest for row in await client.collect_garbage(0)] == [made.digest]
        (made.path / "small").write_bytes(b"jello")
        with pytest.raises(ServiceError, match="SHA-256"):
            await client.push(made.path)
        (made.path / "small").write_bytes(b"he")
        with pytest.raises(ArtifactFaultError, match="got 2"):
            await client.push(made.path)
    assert here.verify("mine").manifest == made.manifest
    assert store.digests() == ()


async def test_an_asyncio_push_goes_on_where_it_broke(address: str, store: LocalStore, made: Artifact) -> None:
    proxy = BreakingProxy(address, [MIB // 2, 3 * MIB])
    async with aio.ArtifactClient(proxy.address) as client:
        await client.push(made.path)
    proxy.close()
    assert store.verify(made.digest).manifest == made.manifest
    assert proxy.num_bytes < made.size_bytes + 2 * (MIB + 65536) + 65536
