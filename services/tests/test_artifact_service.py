import os
from typing import Any

import grpc

from vlmpress.artifact.v1 import artifact_pb2
from vlmpress.artifact.v1 import artifact_service_pb2 as pb
from vlmpress.artifact.v1.artifact_service_pb2_grpc import ArtifactServiceStub
from vlmpress_services.artifact_service import CHUNK_BYTES


async def test_manifest_list_and_verify(serving: Any, store: Any, add_log: Any) -> None:
    artifact = add_log()
    store.tag("b", artifact.digest)
    store.tag("a", artifact.digest)
    async with serving("artifact") as channel:
        stub = ArtifactServiceStub(channel)
        response = await stub.GetManifest(pb.GetManifestRequest(artifact="a"))
        assert (response.digest, response.manifest) == (artifact.digest, artifact.manifest)
        (row,) = (await stub.ListArtifacts(pb.ListArtifactsRequest(kind="log"))).artifacts
        assert row == pb.ArtifactSummary(digest=artifact.digest, kind="log", tags=["a", "b"], size_bytes=5)
        assert not (await stub.ListArtifacts(pb.ListArtifactsRequest(kind="model"))).artifacts
        assert (await stub.VerifyArtifact(pb.VerifyArtifactRequest(artifact="a"))).ok
        (artifact.path / "log.txt").write_text("jello")
        checked = await stub.VerifyArtifact(pb.VerifyArtifactRequest(artifact="a"))
        assert not checked.ok
        assert "log.txt" in checked.fault
        assert str(store.root) not in checked.fault


async def test_a_file_is_read_in_chunks_from_any_offset(serving: Any, store: Any) -> None:
    content = os.urandom(2 * CHUNK_BYTES + 17)
    with store.draft() as draft:
        (draft.path / "sub").mkdir()
        (draft.path / "sub" / "big").write_bytes(content)
        (draft.path / "none").write_bytes(b"")
        artifact = draft.commit(artifact_pb2.Log(source="test"), producer=("test", "0"))
    async with serving("artifact") as channel:
        stub = ArtifactServiceStub(channel)

        async def read(path: str, offset: int = 0) -> bytes:
            data, position = b"", offset
            async for part in stub.ReadFile(pb.ReadFileRequest(artifact=artifact.digest, path=path, offset=offset)):
                assert part.offset == position
                assert 0 < len(part.data) <= CHUNK_BYTES
                data, position = data + part.data, position + len(part.data)
            return data

        assert await read("sub/big") == content
        assert await read("sub/big", CHUNK_BYTES + 5) == content[CHUNK_BYTES + 5 :]
        assert await read("sub/big", len(content)) == b""
        assert await read("none") == b""


async def test_what_is_not_there_is_refused(serving: Any, add_log: Any, refusal: Any) -> None:
    artifact = add_log()
    async with serving("artifact") as channel:
        stub = ArtifactServiceStub(channel)

        async def read(**fields: Any) -> tuple[grpc.StatusCode, str]:
            request = pb.ReadFileRequest(**{"artifact": artifact.digest, "path": "log.txt", **fields})
            return await refusal(stub.ReadFile(request).read())

        assert (await read(offset=6))[0] is grpc.StatusCode.INVALID_ARGUMENT
        assert (await read(offset=1 << 63))[0] is grpc.StatusCode.INVALID_ARGUMENT
        for path in ("", "nothing", "../x", "/etc/passwd", "manifest.json"):
            assert (await read(path=path))[0] is grpc.StatusCode.NOT_FOUND
        assert (await read(artifact="0" * 64))[0] is grpc.StatusCode.NOT_FOUND
        assert (await read(artifact="../../etc"))[0] is grpc.StatusCode.INVALID_ARGUMENT
        (artifact.path / "log.txt").write_text("he")
        assert (await read())[0] is grpc.StatusCode.DATA_LOSS
