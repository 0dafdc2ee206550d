"""Transfers whose connections break: all complete, the same digest, at most one chunk sent again for each break."""

import random
import shutil
import socket
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest

from vlmpress.artifact import Artifact, create
from vlmpress.artifact.v1 import artifact_pb2
from vlmpress_services.clients import ArtifactClient
from vlmpress_services.serving.launch import served
from vlmpress_services.store.local import LocalStore

MIB = 1 << 20
# What the proxy reads at a time; and what a second connection takes: preface, settings, headers, acknowledgements.
READ_BYTES, CONNECTION_BYTES = 64 << 10, 16 << 10


class BreakingProxy:
    """Passes connections on to a server, and cuts the one on which so many bytes have gone one way."""

    def __init__(self, target: str, *, counts_answers: bool) -> None:
        host, _, port = target.rpartition(":")
        self._target = (host, int(port))
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.address = f"127.0.0.1:{self._listener.getsockname()[1]}"
        self._counts_answers = counts_answers
        self.num_bytes = 0
        self.cut_at: int | None = None
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            client, _ = self._listener.accept()
            server = socket.create_connection(self._target)
            for source, target in ((client, server), (server, client)):
                counted = (source is server) == self._counts_answers
                threading.Thread(target=self._pass, args=(source, target, counted), daemon=True).start()

    def _pass(self, source: socket.socket, target: socket.socket, counted: bool) -> None:
        with suppress(OSError):
            while data := source.recv(READ_BYTES):
                if counted:
                    self.num_bytes += len(data)
                    if self.cut_at is not None and self.num_bytes >= self.cut_at:
                        self.cut_at = None
                        break
                target.sendall(data)
        for end in (source, target):
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)


def artifact_of(folder: Path, data: bytes, number: int) -> Artifact:
    with create(folder) as draft:
        (draft.path / "weights").write_bytes(data)
        (draft.path / "number").write_text(str(number))
        return draft.commit(artifact_pb2.Log(source="soak"), producer=("test", "0"))


def push(client: ArtifactClient, made: Artifact, store: LocalStore, here: LocalStore) -> Artifact:
    return store.verify(client.push(made.path))


def pull(client: ArtifactClient, made: Artifact, store: LocalStore, here: LocalStore) -> Artifact:
    store.add(made.path)
    pulled = here.verify(client.pull(made.digest, here).digest)
    here.collect_garbage(list, 0)
    return pulled


@pytest.mark.parametrize("transfer", [push, pull])
def test_broken_transfers(tmp_path: Path, transfer: Callable[..., Artifact], count: Callable[[int, int], int]) -> None:
    chance = random.Random(0)
    data = chance.randbytes(count(200_000_000, 8_000_000))
    store, here = LocalStore(tmp_path / "store"), LocalStore(tmp_path / "here")
    unbroken = most_again = 0
    with served(store.root, "artifact") as address, ArtifactClient(address) as direct:
        proxy = BreakingProxy(address, counts_answers=transfer is pull)
        for number in range(1 + count(100, 8)):
            made = artifact_of(tmp_path / "made", data, number)
            proxy.num_bytes = 0
            proxy.cut_at = chance.randrange(READ_BYTES, len(data)) if unbroken else None
            with ArtifactClient(proxy.address) as client:
                assert transfer(client, made, store, here).manifest == made.manifest
            assert proxy.cut_at is None, "the connection did not break"
            unbroken = unbroken or proxy.num_bytes
            again = proxy.num_bytes - unbroken
            assert again <= MIB + READ_BYTES + CONNECTION_BYTES, f"transfer {number}: {again} bytes more than unbroken"
            most_again = max(most_again, again)
            direct.collect_garbage(0)
            shutil.rmtree(made.path)
    done = f"{number} of {len(data)} bytes, each broken once, at most {most_again} bytes again"
    print(f"{transfer.__name__}: {done}")  # noqa: T201
