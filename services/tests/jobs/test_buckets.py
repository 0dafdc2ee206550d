"""A job on a server whose store is a bucket: its inputs are fetched, its result and its log are there at the end."""

from pathlib import Path
from typing import Any

from quantpack import Scheme, verify
from quantpack.wire import scheme_to_proto
from vlmpress.job.v1 import job_pb2
from vlmpress.job.v1.job_pb2 import JOB_STATE_SUCCEEDED
from vlmpress_services.clients import aio
from vlmpress_services.serving.server import Server, ServerConfig


async def test_a_job_takes_its_model_from_a_bucket_and_leaves_its_pack_there(
    open_bucket: Any, add_model: Any, tmp_path: Path, monkeypatch: Any
) -> None:
    there = open_bucket()
    model = there.add(add_model().path)
    there.tag("teacher", model.digest)
    monkeypatch.setenv("VLMPRESS_CACHE", str(tmp_path / "cache"))
    server = Server(ServerConfig(listen="127.0.0.1:0", store=open_bucket.url, services=("job", "artifact")))
    await server.start()
    try:
        spec = job_pb2.JobSpec(pack=job_pb2.PackJob(model="teacher", scheme=scheme_to_proto(Scheme(group_size=16))))
        async with aio.JobClient(server.address) as jobs, aio.ArtifactClient(server.address) as artifacts:
            made = await jobs.create(spec, "first")
            last = [job async for job in jobs.watch(made.job_id)][-1]
            assert last.state == JOB_STATE_SUCCEEDED, last.message
            assert await artifacts.verify(last.result) == ""
            # Nothing that a job led to is garbage, although no tag leads there.
            assert await artifacts.collect_garbage(0) == []
    finally:
        await server.stop(0.2)
    (folder,) = (tmp_path / "cache").iterdir()
    assert (folder / "cache" / model.digest).is_dir()
    packed = open_bucket().verify(last.result)
    verify(packed.path)
    assert [parent.digest for parent in packed.manifest.parents] == [model.digest]
    assert there.verify(last.log).manifest.kind == "log"
