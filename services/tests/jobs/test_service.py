import asyncio
import os
from typing import Any

import grpc
import pytest

from quantpack import Scheme
from quantpack.wire import scheme_to_proto
from vlmpress.job.v1 import job_pb2
from vlmpress.job.v1 import job_service_pb2 as pb
from vlmpress.job.v1.job_service_pb2_grpc import JobServiceStub
from vlmpress.quantpack.v1 import quantpack_pb2
from vlmpress_services.jobs.locks import JobLock
from vlmpress_services.jobs.table import JobTable

SCHEME = quantpack_pb2.Scheme(bits=4, granularity=quantpack_pb2.GRANULARITY_GROUP, group_size=16)


def pack_request(model: str, request_id: str = "r", scheme: Any = SCHEME) -> pb.CreateJobRequest:
    spec = job_pb2.JobSpec(pack=job_pb2.PackJob(model=model, scheme=scheme))
    return pb.CreateJobRequest(spec=spec, request_id=request_id)


async def ended(stub: JobServiceStub, job_id: str) -> list[Any]:
    return [response.job async for response in stub.WatchJob(pb.WatchJobRequest(job_id=job_id), timeout=120)]


async def test_a_pack_job_puts_a_pack_into_the_store(serving: Any, store: Any, add_model: Any, refusal: Any) -> None:
    model = add_model()
    async with serving("job") as channel:
        stub = JobServiceStub(channel)
        job = (await stub.CreateJob(pack_request(model.digest))).job
        assert (await stub.CreateJob(pack_request(model.digest))).job.job_id == job.job_id
        seen = await ended(stub, job.job_id)
        assert [each.revision for each in seen] == sorted({each.revision for each in seen})
        last = seen[-1]
        assert last.state == job_pb2.JOB_STATE_SUCCEEDED, last.message
        packed = store.verify(last.result)
        assert packed.manifest.kind == "quantized_model"
        assert packed.manifest.parents[0].digest == model.digest
        assert last.attempt == 1
        assert store.verify(last.log).manifest.kind == "log"
        assert (await stub.GetJob(pb.GetJobRequest(job_id=job.job_id))).job == last
        assert list((await stub.ListJobs(pb.ListJobsRequest())).jobs) == [last]
        # A watch that knows the end has nothing to say, and ends.
        request = pb.WatchJobRequest(job_id=job.job_id, revision=last.revision)
        assert [each async for each in stub.WatchJob(request, timeout=5)] == []


async def test_a_job_that_cannot_be_done_says_why(serving: Any, add_model: Any) -> None:
    async with serving("job") as channel:
        stub = JobServiceStub(channel)
        request = pack_request(
            add_model().digest, scheme=quantpack_pb2.Scheme(bits=5, granularity=quantpack_pb2.GRANULARITY_TENSOR)
        )
        last = (await ended(stub, (await stub.CreateJob(request)).job.job_id))[-1]
    assert last.state == job_pb2.JOB_STATE_FAILED
    assert last.message == "bits: expected 2 to 4, got 5"


async def test_a_sweep_job_puts_a_report_into_the_store(
    serving: Any, store: Any, add_model: Any, add_dataset: Any, refusal: Any
) -> None:
    model, dataset = add_model().digest, add_dataset().digest
    scheme = scheme_to_proto(Scheme(granularity="rows", symmetric=True))
    part = quantpack_pb2.PartRecipe(scheme=scheme, method=quantpack_pb2.Method(gptq=quantpack_pb2.Gptq()))
    recipe = quantpack_pb2.Recipe(default=part, other=quantpack_pb2.PartChoice(keep=quantpack_pb2.Keep()))
    search = quantpack_pb2.EcmSearch(max_accuracy_drop=0.5, group_size=16)
    setting = quantpack_pb2.SweepSetting(name="2 rows", recipe=recipe)
    sweep = job_pb2.SweepJob(model=model, dataset=dataset, settings=[setting], search=search, num_questions=2)
    async with serving("job") as channel:
        stub = JobServiceStub(channel)
        request = pb.CreateJobRequest(request_id="a", spec=job_pb2.JobSpec(sweep=sweep))
        seen = await ended(stub, (await stub.CreateJob(request)).job.job_id)
        assert seen[-1].state == job_pb2.JOB_STATE_SUCCEEDED, seen[-1].message
        assert [each.progress for each in seen] == sorted(each.progress for each in seen)
        report = store.verify(seen[-1].result)
        assert {file.path for file in report.manifest.files} == {"sweep.json", "sweep.svg"}
        for spec, code in (
            (job_pb2.PackJob(model=model, recipe=recipe, dataset="none"), grpc.StatusCode.NOT_FOUND),
            (job_pb2.PackJob(model=model, recipe=recipe, dataset=model), grpc.StatusCode.INVALID_ARGUMENT),
            (job_pb2.PackJob(model=model, search=search), grpc.StatusCode.INVALID_ARGUMENT),
            (job_pb2.PackJob(model=model), grpc.StatusCode.INVALID_ARGUMENT),
        ):
            call = stub.CreateJob(pb.CreateJobRequest(request_id="bad", spec=job_pb2.JobSpec(pack=spec)))
            assert (await refusal(call))[0] is code


async def test_a_cancelled_search_leaves_nothing(serving: Any, store: Any, add_model: Any, add_dataset: Any) -> None:
    search = quantpack_pb2.EcmSearch(max_accuracy_drop=1, group_size=8)
    job = job_pb2.PackJob(model=add_model().digest, search=search, dataset=add_dataset(100, 1).digest)
    async with serving("job") as channel:
        stub = JobServiceStub(channel)
        request = pb.CreateJobRequest(request_id="a", spec=job_pb2.JobSpec(pack=job))
        job_id = (await stub.CreateJob(request)).job.job_id
        watch = aiter(stub.WatchJob(pb.WatchJobRequest(job_id=job_id), timeout=60))
        while not (seen := (await anext(watch)).job).message.startswith("trial "):
            assert seen.state in (job_pb2.JOB_STATE_PENDING, job_pb2.JOB_STATE_RUNNING), seen.message
        assert (await stub.CancelJob(pb.CancelJobRequest(job_id=job_id))).job.state == job_pb2.JOB_STATE_CANCELLED
        assert [response.job.state async for response in watch][-1:] == [job_pb2.JOB_STATE_CANCELLED]
        while (lock := JobLock.take(store.root / "jobs", job_id)) is None:
            await asyncio.sleep(0.05)
        lock.close()
    assert not store.list("quantized_model")
    assert not [folder for folder in (store.root / "incoming").glob("*") if any(folder.iterdir())]


async def test_bad_requests_are_refused(serving: Any, add_log: Any, refusal: Any) -> None:
    invalid, missing = grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.NOT_FOUND
    empty_pipeline = job_pb2.JobSpec(pipeline=job_pb2.PipelineJob())
    pipeline = job_pb2.JobSpec(pipeline=job_pb2.PipelineJob(config_yaml="seed: 1"))
    async with serving("job") as channel:
        stub = JobServiceStub(channel)
        for call, code in (
            (stub.CreateJob(pb.CreateJobRequest()), invalid),
            (stub.CreateJob(pb.CreateJobRequest(request_id="r")), invalid),
            (stub.CreateJob(pb.CreateJobRequest(request_id="r", spec=empty_pipeline)), invalid),
            (stub.CreateJob(pb.CreateJobRequest(request_id="", spec=pipeline)), invalid),
            (stub.CreateJob(pack_request("none")), missing),
            (stub.CreateJob(pack_request("")), invalid),
            (stub.CreateJob(pack_request(add_log().digest)), invalid),
            (stub.GetJob(pb.GetJobRequest()), missing),
            (stub.CancelJob(pb.CancelJobRequest()), missing),
            (stub.WatchJob(pb.WatchJobRequest()).read(), missing),
        ):
            assert (await refusal(call))[0] is code
        assert not (await stub.ListJobs(pb.ListJobsRequest())).jobs
        for request in (
            pb.ListJobsRequest(page_size=1001),
            pb.ListJobsRequest(page_token="x"),
            pb.ListJobsRequest(states=[job_pb2.JOB_STATE_UNSPECIFIED]),
        ):
            assert (await refusal(stub.ListJobs(request)))[0] is invalid


async def test_a_request_id_is_for_one_spec_and_outlives_what_it_needs(
    serving: Any, store: Any, add_model: Any, refusal: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vlmpress_services.jobs.runner.JobRunner._look", _nothing)
    store.tag("it", add_model().digest)
    async with serving("job") as channel:
        stub = JobServiceStub(channel)
        job = (await stub.CreateJob(pack_request("it"))).job
        code, text = await refusal(stub.CreateJob(pack_request(add_model("other").digest)))
        assert code is grpc.StatusCode.ALREADY_EXISTS
        assert job.job_id in text
        (store.root / "tags" / "it").unlink()
        assert (await stub.CreateJob(pack_request("it"))).job == job
        assert (await refusal(stub.CreateJob(pack_request("it", "another"))))[0] is grpc.StatusCode.NOT_FOUND


async def test_a_new_job_keeps_what_it_names_from_a_collection_that_has_begun(
    serving: Any, store: Any, add_model: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vlmpress_services.jobs.runner.JobRunner._look", _nothing)
    model = add_model()
    os.utime(model.path, (0, 0))
    async with serving("job") as channel:
        await JobServiceStub(channel).CreateJob(pack_request(model.digest))
    # Its roots were read before the job was made.
    assert not store.collect_garbage(lambda: (), 3600)
    assert store.has(model.digest)


async def test_jobs_are_listed_a_page_at_a_time(serving: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vlmpress_services.jobs.runner.JobRunner._look", _nothing)
    async with serving("job") as channel:
        stub = JobServiceStub(channel)
        made = []
        for number in range(5):
            spec = job_pb2.JobSpec(pipeline=job_pb2.PipelineJob(config_yaml=f"seed: {number}"))
            made.append((await stub.CreateJob(pb.CreateJobRequest(request_id=str(number), spec=spec))).job.job_id)
        await stub.CancelJob(pb.CancelJobRequest(job_id=made[2]))
        found, token, sizes = [], "", []
        while not sizes or token:
            page = await stub.ListJobs(pb.ListJobsRequest(page_size=2, page_token=token))
            token = page.next_page_token
            sizes.append(len(page.jobs))
            found += [job.job_id for job in page.jobs]
        assert (found, sizes) == (made[::-1], [2, 2, 1])
        cancelled = await stub.ListJobs(pb.ListJobsRequest(states=[job_pb2.JOB_STATE_CANCELLED]))
        assert [job.job_id for job in cancelled.jobs] == [made[2]]


async def _nothing(_: Any) -> None:
    """A runner that begins no job."""


async def test_cancel_ends_the_worker_and_the_watch(serving: Any, store: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    original = asyncio.create_subprocess_exec

    async def sleeper(*command: str, **options: Any) -> Any:
        processes.append(await original(command[0], "-c", "import time; time.sleep(600)", **options))
        return processes[-1]

    processes: list[Any] = []
    monkeypatch.setattr(asyncio, "create_subprocess_exec", sleeper)
    spec = job_pb2.JobSpec(pipeline=job_pb2.PipelineJob(config_yaml="seed: 1"))
    async with serving("job") as channel:
        stub = JobServiceStub(channel)
        ids = [
            (await stub.CreateJob(pb.CreateJobRequest(request_id=name, spec=spec))).job.job_id for name in ("a", "b")
        ]
        watch = aiter(stub.WatchJob(pb.WatchJobRequest(job_id=ids[0]), timeout=60))
        while (await anext(watch)).job.state != job_pb2.JOB_STATE_RUNNING:
            pass
        pending = (await stub.CancelJob(pb.CancelJobRequest(job_id=ids[1]))).job
        assert pending.state == job_pb2.JOB_STATE_CANCELLED
        assert (await stub.CancelJob(pb.CancelJobRequest(job_id=ids[0]))).job.state == job_pb2.JOB_STATE_CANCELLED
        assert [response.job.state async for response in watch] == [job_pb2.JOB_STATE_CANCELLED]
        await asyncio.wait_for(processes[0].wait(), 10)
        assert len(processes) == 1, "a cancelled pending job was started"
        # A stopping server ends its running job's worker and gives the job back.
        last = (await stub.CreateJob(pb.CreateJobRequest(request_id="c", spec=spec))).job.job_id
        watch = aiter(stub.WatchJob(pb.WatchJobRequest(job_id=last), timeout=60))
        while (await anext(watch)).job.state != job_pb2.JOB_STATE_RUNNING:
            pass
    left = JobTable(store.root).get(last)
    assert (left.state, left.attempt) == (job_pb2.JOB_STATE_PENDING, 1)
    assert "server stopped" in left.message
    assert processes[1].returncode is not None


async def test_a_worker_that_always_dies_fails_its_job(
    serving: Any, store: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = asyncio.create_subprocess_exec

    async def broken(*command: str, **options: Any) -> Any:
        return await original(command[0], "-c", "import sys; print('so long'); sys.exit(3)", **options)

    monkeypatch.setattr(asyncio, "create_subprocess_exec", broken)
    spec = job_pb2.JobSpec(pipeline=job_pb2.PipelineJob(config_yaml="seed: 1"))
    async with serving("job") as channel:
        stub = JobServiceStub(channel)
        job = (await stub.CreateJob(pb.CreateJobRequest(request_id="a", spec=spec))).job
        last = (await ended(stub, job.job_id))[-1]
    assert (last.state, last.attempt) == (job_pb2.JOB_STATE_FAILED, 3)
    assert last.message == "the worker ended with exit code 3; 3 attempts were lost, and no more may be"
    log = store.verify(last.log)
    assert log.manifest.log.source == f"job {job.job_id}"
    assert [(log.path / f"attempt-{number}.log").read_text() for number in (1, 2, 3)] == ["so long\n"] * 3
    assert not (store.root / "jobs" / "logs" / job.job_id).exists()
