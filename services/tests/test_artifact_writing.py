"""Writing, tags and garbage collection over the wire."""

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import grpc
import pytest

from vlmpress.artifact import Artifact, create
from vlmpress.artifact.v1 import artifact_pb2
from vlmpress.artifact.v1 import artifact_service_pb2 as pb
from vlmpress.artifact.v1.artifact_service_pb2_grpc import ArtifactServiceStub
from vlmpress.edgevlm.v1.edgevlm_service_pb2 import LoadModelRequest
from vlmpress.edgevlm.v1.edgevlm_service_pb2_grpc import EdgeVlmServiceStub
from vlmpress.job.v1 import job_pb2
from vlmpress_services.jobs.table import JobTable
from vlmpress_services.store.checksum import crc32c
from vlmpress_services.store.local import LocalStore
from vlmpress_services.store.parts import PartFile

CHUNK = 1 << 20


@pytest.fixture
def made(tmp_path: Path) -> Artifact:
    with create(tmp_path / "made") as draft:
        (draft.path / "sub").mkdir()
        (draft.path / "sub" / "big").write_bytes(os.urandom(2 * CHUNK + 17))
        (draft.path / "small").write_bytes(b"hello")
        return draft.commit(artifact_pb2.Log(source="test"), producer=("test", "0"))


def chunks(made: Artifact, path: str, offset: int = 0) -> Iterable[pb.WriteFileRequest]:
    data = (made.path / path).read_bytes()
    digest, name = made.digest, path
    for start in range(offset, len(data), CHUNK):
        piece = data[start : start + CHUNK]
        yield pb.WriteFileRequest(digest=digest, path=name, offset=start, data=piece, crc32c=crc32c(piece))
        digest = name = ""


async def test_an_artifact_is_written_and_found(serving: Any, store: LocalStore, made: Artifact) -> None:
    manifest_json = (made.path / "manifest.json").read_bytes()
    async with serving("artifact") as channel:
        stub = ArtifactServiceStub(channel)
        started = await stub.StartWrite(pb.StartWriteRequest(manifest_json=manifest_json))
        assert (started.digest, started.already_there) == (made.digest, False)
        assert [(file.path, file.persisted_size) for file in started.files] == [("small", 0), ("sub/big", 0)]
        for path in ("small", "sub/big"):
            sizes = [answer.persisted_size async for answer in stub.WriteFile(iter(chunks(made, path)))]
            assert sizes == ([5] if path == "small" else [CHUNK, 2 * CHUNK, 2 * CHUNK + 17])
        status = await stub.QueryWriteStatus(pb.QueryWriteStatusRequest(digest=made.digest))
        assert [file.persisted_size for file in status.files] == [5, 2 * CHUNK + 17]
        assert not (await stub.ListArtifacts(pb.ListArtifactsRequest())).artifacts
        for _ in range(2):
            done = await stub.CommitWrite(pb.CommitWriteRequest(digest=made.digest, tag="it"))
            assert (done.artifact.digest, list(done.artifact.tags)) == (made.digest, ["it"])
        assert (await stub.QueryWriteStatus(pb.QueryWriteStatusRequest(digest=made.digest))).committed
        assert (await stub.StartWrite(pb.StartWriteRequest(manifest_json=manifest_json))).already_there
        parts = [
            part async for part in stub.ReadFile(pb.ReadFileRequest(artifact="it", path="small", length=4, offset=1))
        ]
        assert [(part.offset, part.data, part.crc32c) for part in parts] == [(1, b"ello", crc32c(b"ello"))]
    assert store.verify("it").manifest == made.manifest


async def test_a_broken_stream_goes_on_where_it_was(
    serving: Any, store: LocalStore, made: Artifact, refusal: Any
) -> None:
    manifest_json = (made.path / "manifest.json").read_bytes()
    async with serving("artifact") as channel:
        stub = ArtifactServiceStub(channel)
        await stub.StartWrite(pb.StartWriteRequest(manifest_json=manifest_json))
        call = stub.WriteFile()
        await call.write(next(iter(chunks(made, "sub/big"))))
        assert (await call.read()).persisted_size == CHUNK
        call.cancel()
        code, text = await refusal(stub.WriteFile(iter(chunks(made, "sub/big"))).read())
        assert code is grpc.StatusCode.ABORTED
        assert str(CHUNK) in text
        started = await stub.StartWrite(pb.StartWriteRequest(manifest_json=manifest_json))
        assert started.files[1].persisted_size == CHUNK
        assert [a.persisted_size async for a in stub.WriteFile(iter(chunks(made, "sub/big", CHUNK)))][
            -1
        ] == 2 * CHUNK + 17


async def test_bad_writes_are_refused(serving: Any, store: LocalStore, made: Artifact, refusal: Any) -> None:
    code = grpc.StatusCode
    async with serving("artifact") as channel:
        stub = ArtifactServiceStub(channel)
        assert (await refusal(stub.StartWrite(pb.StartWriteRequest())))[0] is code.INVALID_ARGUMENT
        for call in (stub.QueryWriteStatus, stub.CommitWrite, stub.AbandonWrite):
            request = {
                stub.QueryWriteStatus: pb.QueryWriteStatusRequest,
                stub.CommitWrite: pb.CommitWriteRequest,
                stub.AbandonWrite: pb.AbandonWriteRequest,
            }[call]
            assert (await refusal(call(request(digest="../x"))))[0] is code.INVALID_ARGUMENT
            assert (await refusal(call(request())))[0] is code.INVALID_ARGUMENT
        assert (await refusal(stub.CommitWrite(pb.CommitWriteRequest(digest=made.digest))))[0] is code.NOT_FOUND
        assert not (await stub.AbandonWrite(pb.AbandonWriteRequest(digest=made.digest))).abandoned

        async def write(*requests: pb.WriteFileRequest) -> grpc.StatusCode:
            return (await refusal(stub.WriteFile(iter(requests)).read()))[0]

        piece = {"digest": made.digest, "path": "small", "data": b"hello", "crc32c": crc32c(b"hello")}
        assert await write() is code.INVALID_ARGUMENT
        assert await write(pb.WriteFileRequest()) is code.INVALID_ARGUMENT
        assert await write(pb.WriteFileRequest(**piece)) is code.NOT_FOUND
        await stub.StartWrite(pb.StartWriteRequest(manifest_json=(made.path / "manifest.json").read_bytes()))
        assert (await refusal(stub.CommitWrite(pb.CommitWriteRequest(digest=made.digest))))[
            0
        ] is code.FAILED_PRECONDITION
        assert await write(pb.WriteFileRequest(**piece | {"path": "../small"})) is code.NOT_FOUND
        assert await write(pb.WriteFileRequest(**piece | {"offset": 3})) is code.INVALID_ARGUMENT
        assert await write(pb.WriteFileRequest(**piece | {"offset": 1 << 63})) is code.INVALID_ARGUMENT
        assert await write(pb.WriteFileRequest(**piece | {"crc32c": 1})) is code.DATA_LOSS
        wrong = {"data": b"jello", "crc32c": crc32c(b"jello")}
        assert await write(pb.WriteFileRequest(**piece | wrong)) is code.DATA_LOSS
        assert store.uploads.status(made.digest)[0].persisted_size == 0
        assert (await stub.AbandonWrite(pb.AbandonWriteRequest(digest=made.digest))).abandoned
    assert store.digests() == ()


async def test_a_full_disk_is_said(serving: Any, made: Artifact, refusal: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    async with serving("artifact") as channel:
        stub = ArtifactServiceStub(channel)
        await stub.StartWrite(pb.StartWriteRequest(manifest_json=(made.path / "manifest.json").read_bytes()))
        monkeypatch.setattr(PartFile, "_append", full)
        code, text = await refusal(stub.WriteFile(iter(chunks(made, "small"))).read())
        assert code is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert "no space left" in text


async def test_tags_are_set_compared_and_removed(serving: Any, add_log: Any, refusal: Any) -> None:
    first, second = add_log("a").digest, add_log("b").digest
    async with serving("artifact") as channel:
        stub = ArtifactServiceStub(channel)
        await stub.SetTag(pb.SetTagRequest(name="it", digest=first, expected=""))
        refused = await refusal(stub.SetTag(pb.SetTagRequest(name="it", digest=second, expected="")))
        assert refused[0] is grpc.StatusCode.ABORTED
        await stub.SetTag(pb.SetTagRequest(name="it", digest=second, expected=first))
        await stub.SetTag(pb.SetTagRequest(name="also", digest=first))
        tags = (await stub.ListTags(pb.ListTagsRequest())).tags
        assert [(tag.name, tag.digest) for tag in tags] == [("also", first), ("it", second)]
        refused = await refusal(stub.DeleteTag(pb.DeleteTagRequest(name="it", expected=first)))
        assert refused[0] is grpc.StatusCode.ABORTED
        assert (await stub.DeleteTag(pb.DeleteTagRequest(name="it"))).deleted
        assert not (await stub.DeleteTag(pb.DeleteTagRequest(name="it"))).deleted
        for request in (pb.SetTagRequest(), pb.SetTagRequest(name="a/b", digest=first), pb.SetTagRequest(name="a")):
            assert (await refusal(stub.SetTag(request)))[0] is grpc.StatusCode.INVALID_ARGUMENT
        assert (await refusal(stub.DeleteTag(pb.DeleteTagRequest())))[0] is grpc.StatusCode.INVALID_ARGUMENT
        refused = await refusal(stub.SetTag(pb.SetTagRequest(name="a", digest="0" * 64)))
        assert refused[0] is grpc.StatusCode.NOT_FOUND


async def test_listings_come_in_pages(serving: Any, store: LocalStore, add_log: Any, refusal: Any) -> None:
    digests = sorted(add_log(str(number)).digest for number in range(7))
    async with serving("artifact") as channel:
        stub = ArtifactServiceStub(channel)
        found, token = [], ""
        for expected in (3, 3, 1):
            page = await stub.ListArtifacts(pb.ListArtifactsRequest(page_size=3, page_token=token))
            assert len(page.artifacts) == expected
            found += [row.digest for row in page.artifacts]
            token = page.next_page_token
        assert (found, token) == (digests, "")
        assert not (await stub.ListArtifacts(pb.ListArtifactsRequest(kind="model", page_size=1))).artifacts
        for request in (pb.ListArtifactsRequest(page_size=1001), pb.ListArtifactsRequest(page_token="x")):
            assert (await refusal(stub.ListArtifacts(request)))[0] is grpc.StatusCode.INVALID_ARGUMENT


async def test_garbage_is_what_no_job_needs(serving: Any, store: LocalStore, add_log: Any, refusal: Any) -> None:
    wanted, result, old_input, lost = (add_log(text).digest for text in ("wanted", "result", "input", "lost"))
    step = add_log("step").digest
    (store.root / "runs" / "r" / "steps").mkdir(parents=True)
    (store.root / "runs" / "r" / "steps" / "x.json").write_text(f'{{"digest": "{step}"}}')
    (store.root / "runs" / "r" / "steps" / "cut.json").write_text('{"dig')
    table = JobTable(store.root)
    table.create("pending", job_pb2.JobSpec(pack=job_pb2.PackJob(model=wanted)))
    done = table.create("done", job_pb2.JobSpec(pack=job_pb2.PackJob(model=old_input)))
    attempt = table.begin(done.job_id)
    assert attempt is not None
    assert table.succeed(attempt, result)
    async with serving("artifact") as channel:
        stub = ArtifactServiceStub(channel)
        request = pb.CollectGarbageRequest(dry_run=True)
        # What is asked for nothing deletes nothing.
        assert (await refusal(stub.CollectGarbage(request)))[0] is grpc.StatusCode.INVALID_ARGUMENT
        request.min_age.FromSeconds(24 * 3600)
        assert not (await stub.CollectGarbage(request)).artifacts
        request.min_age.FromSeconds(0)
        for _ in range(2):
            found = (await stub.CollectGarbage(request)).artifacts
            assert {row.digest for row in found} == {old_input, lost}
            request.dry_run = False
        assert set(store.digests()) == {wanted, result, step}
        request.min_age.FromSeconds(-1)
        assert (await refusal(stub.CollectGarbage(request)))[0] is grpc.StatusCode.INVALID_ARGUMENT


async def test_what_a_server_holds_in_memory_is_no_garbage(serving: Any, store: LocalStore, add_model: Any) -> None:
    model, other = add_model().digest, add_model("other").digest
    request = pb.CollectGarbageRequest()
    request.min_age.FromSeconds(0)
    async with serving("artifact", "edgevlm") as channel:
        await EdgeVlmServiceStub(channel).LoadModel(LoadModelRequest(model=model))
        found = (await ArtifactServiceStub(channel).CollectGarbage(request)).artifacts
    assert [row.digest for row in found] == [other]
    assert store.digests() == (model,)
