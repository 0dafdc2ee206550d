"""Tables of jobs of earlier versions: their jobs are what they were, and a server goes on with them."""

import json
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from google.protobuf import json_format

from vlmpress.job.v1 import job_pb2 as pb
from vlmpress.job.v1 import job_service_pb2 as service_pb
from vlmpress.job.v1.job_service_pb2_grpc import JobServiceStub
from vlmpress_services.jobs.table import JobTable
from vlmpress_services.store.local import LocalStore

GOLDEN = Path(__file__).parents[1] / "golden"
TABLES = sorted(GOLDEN.glob("*/jobs.sql"))


@pytest.fixture(params=TABLES, ids=lambda path: path.parent.name)
def expected(request: pytest.FixtureRequest, store: LocalStore) -> dict[str, pb.Job]:
    """Puts a table into the store; gives the jobs it was made with by request id."""
    folder = store.root / "jobs"
    folder.mkdir(parents=True)
    with closing(sqlite3.connect(folder / "jobs.sqlite3")) as database:
        database.executescript(request.param.read_text())
    fields = json.loads(request.param.with_suffix(".json").read_text())
    return {name: json_format.ParseDict(job, pb.Job()) for name, job in fields.items()}


def test_there_is_one() -> None:
    assert [path.parent.name for path in TABLES][:1] == ["0.1.0"]


def test_jobs_read_as_they_were_written(expected: dict[str, pb.Job], store: LocalStore) -> None:
    assert {job.state for job in expected.values()} == set(pb.JobState.values()) - {pb.JOB_STATE_UNSPECIFIED}
    table = JobTable(store.root)
    for request_id, job in expected.items():
        assert table.get(job.job_id) == job
        assert table.made_by(request_id, job.spec) == job
    assert {job.job_id for job in table.jobs()} == {job.job_id for job in expected.values()}
    running = expected["running"]
    assert [(each.job_id, each.number, each.runner) for each in table.running()] == [(running.job_id, 1, "ray")]
    assert not table.unsettled()
    attempt = table.begin(expected["pending"].job_id)
    assert attempt is not None
    assert (attempt.number, attempt.num_lost, attempt.spec) == (2, 1, expected["pending"].spec)


async def test_a_server_goes_on_with_them(
    expected: dict[str, pb.Job], store: LocalStore, serving: Any, add_model: Any
) -> None:
    store.tag("golden", add_model().digest)
    pending = expected.pop("pending")
    async with serving("job") as channel:
        stub = JobServiceStub(channel)
        watch = stub.WatchJob(service_pb.WatchJobRequest(job_id=pending.job_id), timeout=120)
        *_, job = [response.job async for response in watch]
        assert job.state == pb.JOB_STATE_SUCCEEDED, job.message
        assert job.attempt == pending.attempt + 1
        assert store.verify(job.result).manifest.kind == "quantized_model"
        # The others have ended, or run where this server has no way to.
        for other in expected.values():
            assert (await stub.GetJob(service_pb.GetJobRequest(job_id=other.job_id))).job == other
