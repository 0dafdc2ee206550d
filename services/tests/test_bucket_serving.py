"""A server whose store is a bucket, on moto's S3 server."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from vlmpress.artifact import Artifact, create
from vlmpress.artifact.v1 import artifact_pb2
from vlmpress_services.clients import aio
from vlmpress_services.errors import RemoteStoreError
from vlmpress_services.serving.server import Server, ServerConfig
from vlmpress_services.store.interface import ArtifactStore
from vlmpress_services.store.local import LocalStore
from vlmpress_services.store.opening import open_store

pytest.importorskip("moto.server")
Open = Callable[..., ArtifactStore]


def artifact_of(folder: Path, text: str) -> Artifact:
    with create(folder) as draft:
        (draft.path / "sub").mkdir()
        (draft.path / "sub" / "a b+c.txt").write_text(text)
        return draft.commit(artifact_pb2.Log(source="sent"), producer=("test", "0"))


@pytest.mark.parametrize("sole_writer", [False, True])
async def test_a_server_of_a_url_takes_a_bucket_that_ignores_conditions_as_its_sole_writer(
    open_bucket: Open, bucket_server: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sole_writer: bool
) -> None:
    monkeypatch.setenv("VLMPRESS_CACHE", str(tmp_path / "cache"))
    bucket_server.app_under_test.ignores = sole_writer
    url = open_bucket.url  # type: ignore[attr-defined]
    config = ServerConfig(listen="127.0.0.1:0", store=url, sole_writer=sole_writer, services=("artifact",))
    if sole_writer:
        with pytest.raises(RemoteStoreError, match="only a sole writer"):
            Server(replace(config, sole_writer=False))
    server = Server(config)
    await server.start()
    sent, here = artifact_of(tmp_path / "sent", "sent"), LocalStore(tmp_path / "here")
    async with aio.ArtifactClient(server.address) as client:
        assert await client.push(sent.path, "sent") == sent.digest
        assert [(row.digest, row.tags) for row in await client.list()] == [(sent.digest, ["sent"])]
        assert (await client.pull("sent", here)).digest == sent.digest
    await server.stop(0.2)
    assert here.verify(sent.digest).manifest == sent.manifest
    assert open_bucket(writable=False).verify("sent").digest == sent.digest
    # What it keeps on this machine lies where it should.
    (kept,) = (tmp_path / "cache").iterdir()
    assert open_store(kept).verify("sent").digest == sent.digest


async def test_a_server_finds_its_bucket_by_its_folder(open_bucket: Open, tmp_path: Path) -> None:
    there = open_bucket()
    made = there.add(artifact_of(tmp_path / "made", "hello").path)
    folder = tmp_path / "server"
    folder.mkdir()
    (folder / "store.url").write_text(f"{open_bucket.url}\n")  # type: ignore[attr-defined]
    server = Server(ServerConfig(listen="127.0.0.1:0", store=folder, services=("artifact",)))
    await server.start()
    sent = artifact_of(tmp_path / "sent", "sent")
    async with aio.ArtifactClient(server.address) as client:
        await client.push(sent.path, "sent")
        await client.tag("it", made.digest, "")
        assert [data async for data in client.read_file("it", "sub/a b+c.txt", 1)] == [b"ello"]
        assert await client.verify("it") == ""
        assert len(await client.list()) == 2
    await server.stop(0.2)
    assert there.tags() == {"it": made.digest, "sent": sent.digest}
    assert there.verify("sent").manifest == sent.manifest
