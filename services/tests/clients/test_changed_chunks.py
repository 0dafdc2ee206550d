"""A piece of a file that was changed on its way is refused, by both clients."""

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from vlmpress.artifact import Artifact, create
from vlmpress.artifact.v1 import artifact_pb2
from vlmpress_services.artifact_service import CHUNK_BYTES, ArtifactService
from vlmpress_services.clients import ArtifactClient, aio
from vlmpress_services.errors import ServiceError
from vlmpress_services.store.local import LocalStore


class Changing(ArtifactService):
    """Changes the second piece of every file."""

    def __init__(self, store: LocalStore, change: Callable[[Any], None]) -> None:
        super().__init__(store)
        self._change = change

    async def ReadFile(self, request: Any, context: Any) -> Any:  # noqa: N802
        async for response in super().ReadFile(request, context):
            if response.offset:
                self._change(response)
            yield response


def change_checksum(response: Any) -> None:
    response.crc32c ^= 1


def change_offset(response: Any) -> None:
    response.offset += 1


def change_data(response: Any) -> None:
    response.data = response.data[:-1] + bytes([response.data[-1] ^ 1])


@pytest.fixture
def made(store: LocalStore, tmp_path: Path) -> Artifact:
    with create(tmp_path / "made") as draft:
        # Every piece is as every other, so that the file's SHA-256 would not find one at another's place.
        (draft.path / "file").write_bytes(bytes(3 * CHUNK_BYTES))
        made = draft.commit(artifact_pb2.Log(source="test"), producer=("test", "0"))
    return store.add(made.path)


@pytest.mark.parametrize("change", [change_checksum, change_offset, change_data])
async def test_a_changed_piece_is_refused(
    listen: Any, store: LocalStore, made: Artifact, tmp_path: Path, change: Callable[[Any], None]
) -> None:
    here = LocalStore(tmp_path / "here")

    def pull(address: str) -> None:
        with ArtifactClient(address) as client:
            client.pull(made.digest, here)

    async with listen(Changing(store, change).register) as address:
        with pytest.raises(ServiceError, match=f"DATA_LOSS.*the bytes at {CHUNK_BYTES}"):
            await asyncio.to_thread(pull, address)
        here.uploads.abandon(made.digest)
        async with aio.ArtifactClient(address) as client:
            with pytest.raises(ServiceError, match=f"DATA_LOSS.*the bytes at {CHUNK_BYTES}"):
                await client.pull(made.digest, here)
    (status,) = here.uploads.status(made.digest)
    assert (status.persisted_size, here.digests()) == (CHUNK_BYTES, ())
