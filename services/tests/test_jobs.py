import os
import sqlite3
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from vlmpress.job.v1 import job_pb2 as pb
from vlmpress_services.errors import InvalidRequestError, NotFoundError
from vlmpress_services.jobs.table import JobTable

SPEC = pb.JobSpec(pipeline=pb.PipelineJob(config_yaml="seed: 1"))


@pytest.fixture
def table(tmp_path: Path) -> JobTable:
    return JobTable(tmp_path)


def test_a_job_goes_from_pending_to_succeeded(table: JobTable) -> None:
    job = table.create("a", SPEC)
    assert (job.state, job.revision, job.spec) == (pb.JOB_STATE_PENDING, 1, SPEC)
    assert table.pending() == [job.job_id]
    assert table.begin(job.job_id)
    assert not table.begin(job.job_id)
    assert table.report(job.job_id, 0.5, "half")
    half = table.get(job.job_id)
    assert (half.state, half.progress, half.message, half.revision) == (pb.JOB_STATE_RUNNING, 0.5, "half", 3)
    assert table.succeed(job.job_id, "d" * 64)
    done = table.get(job.job_id)
    assert (done.state, done.progress, done.result, done.revision) == (pb.JOB_STATE_SUCCEEDED, 1.0, "d" * 64, 4)
    assert done.update_time.ToNanoseconds() >= done.create_time.ToNanoseconds() > 0
    assert not table.fail(job.job_id, "too late")
    assert table.cancel(job.job_id) == done


def test_a_request_id_makes_one_job(table: JobTable) -> None:
    first = table.create("a", SPEC)
    assert table.create("a", pb.JobSpec()) == first
    second = table.create("b", SPEC)
    assert [job.job_id for job in table.jobs()] == [second.job_id, first.job_id]


def test_many_threads_make_one_job(table: JobTable) -> None:
    ids: list[str] = []
    threads = [threading.Thread(target=lambda: ids.append(table.create("a", SPEC).job_id)) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(ids) == 8
    assert len(set(ids)) == len(table.jobs()) == 1


@pytest.mark.parametrize("request_id", ["", "x" * 129])
def test_bad_request_ids_are_refused(table: JobTable, request_id: str) -> None:
    with pytest.raises(InvalidRequestError, match="1 to 128"):
        table.create(request_id, SPEC)


def test_unknown_jobs_are_not_found(table: JobTable) -> None:
    for call in (table.get, table.cancel):
        with pytest.raises(NotFoundError):
            call("0" * 32)


def test_a_cancelled_job_takes_no_more_changes(table: JobTable) -> None:
    job_id = table.create("a", SPEC).job_id
    assert table.begin(job_id)
    assert table.cancel(job_id).state == pb.JOB_STATE_CANCELLED
    assert not table.report(job_id, 0.1, "on")
    assert not table.succeed(job_id, "d")
    assert table.get(job_id).message == "cancelled"


def test_a_dead_worker_s_job_fails_and_a_living_one_s_does_not(table: JobTable, tmp_path: Path) -> None:
    script = """
import sys
from pathlib import Path
from vlmpress_services.jobs.table import JobTable
table = JobTable(Path(sys.argv[1]))
with table.owned(sys.argv[2]) as owned:
    assert owned and table.begin(sys.argv[2])
    print("running", flush=True)
    sys.stdin.read()
"""
    job_id, waiting = table.create("a", SPEC).job_id, table.create("b", SPEC).job_id
    with subprocess.Popen(
        [sys.executable, "-c", script, str(tmp_path), job_id], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == b"running\n"
        with table.owned(job_id) as owned:
            assert not owned
        table.fail_dead()
        assert table.get(job_id).state == pb.JOB_STATE_RUNNING
        child.kill()
    table.fail_dead()
    assert table.get(job_id).state == pb.JOB_STATE_FAILED
    assert "died" in table.get(job_id).message
    assert table.get(waiting).state == pb.JOB_STATE_PENDING


def test_a_training_job_says_how_far_it_is_in_numbers(table: JobTable) -> None:
    job = table.create("a", SPEC)
    table.begin(job.job_id)
    assert not table.get(job.job_id).HasField("train_progress")
    progress = pb.TrainProgress(stage=1, num_stages=3, step=7, num_steps=20, loss=0.5, tokens_per_second=100.0)
    assert table.report(job.job_id, 0.35, "stage 2", progress)
    assert table.get(job.job_id).train_progress == progress
    # Another line leaves the numbers as they were.
    assert table.report(job.job_id, 0.35, "saving")
    assert table.get(job.job_id).train_progress == progress
    assert not table.get(job.job_id).train_progress.HasField("seconds_left")


def test_a_table_of_an_earlier_version_gets_what_it_lacks(table: JobTable) -> None:
    job = table.create("a", SPEC)
    with sqlite3.connect(table.folder / "jobs.sqlite3") as database:
        database.execute("ALTER TABLE jobs DROP COLUMN train_progress")
    table = JobTable(table.folder.parent)
    assert table.get(job.job_id) == job
    table.begin(job.job_id)
    assert table.report(job.job_id, 0.5, "half", pb.TrainProgress(step=1))
    assert table.get(job.job_id).train_progress.step == 1


def test_the_lock_names_the_process(table: JobTable) -> None:
    with table.owned("a") as owned:
        assert owned
        assert int((table.folder / "a.lock").read_text()) == os.getpid()
