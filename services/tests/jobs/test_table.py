import sqlite3
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from vlmpress.job.v1 import job_pb2 as pb
from vlmpress_services.errors import AlreadyExistsError, InvalidRequestError, NotFoundError
from vlmpress_services.jobs.locks import JobLock
from vlmpress_services.jobs.paging import page_of
from vlmpress_services.jobs.table import Attempt, JobTable

SPEC = pb.JobSpec(pipeline=pb.PipelineJob(config_yaml="seed: 1"))


@pytest.fixture
def table(tmp_path: Path) -> JobTable:
    return JobTable(tmp_path)


def begun(table: JobTable, request_id: str = "a") -> Attempt:
    attempt = table.begin(table.create(request_id, SPEC).job_id)
    assert attempt is not None
    return attempt


def test_a_job_goes_from_pending_to_succeeded(table: JobTable) -> None:
    job = table.create("a", SPEC)
    assert (job.state, job.revision, job.spec, job.attempt) == (pb.JOB_STATE_PENDING, 1, SPEC, 0)
    assert table.pending() == [job.job_id]
    attempt = table.begin(job.job_id, "ray")
    assert attempt == Attempt(job_id=job.job_id, number=1, runner="ray", spec=SPEC, num_lost=0)
    assert table.begin(job.job_id) is None
    assert table.running() == [attempt]
    assert table.report(attempt, 0.5, "half")
    half = table.get(job.job_id)
    assert (half.state, half.progress, half.message, half.revision) == (pb.JOB_STATE_RUNNING, 0.5, "half", 3)
    assert table.succeed(attempt, "d" * 64, "e" * 64)
    done = table.get(job.job_id)
    assert (done.state, done.progress, done.result, done.revision) == (pb.JOB_STATE_SUCCEEDED, 1.0, "d" * 64, 4)
    assert (done.log, done.attempt) == ("e" * 64, 1)
    assert done.update_time.ToNanoseconds() >= done.create_time.ToNanoseconds() > 0
    assert not table.fail(attempt, "too late")
    assert not table.lose(attempt, "too late")
    assert not table.settle(attempt, "f" * 64)
    assert table.cancel(job.job_id) == done


def test_a_request_id_makes_one_job_of_one_spec(table: JobTable) -> None:
    first = table.create("a", SPEC)
    assert table.create("a", SPEC) == first
    with pytest.raises(AlreadyExistsError, match=f"^request_id 'a': expected the spec of job {first.job_id}"):
        table.create("a", pb.JobSpec())
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


def test_a_cancelled_job_takes_no_more_changes_but_its_log(table: JobTable) -> None:
    attempt = begun(table)
    assert table.cancel(attempt.job_id).state == pb.JOB_STATE_CANCELLED
    assert not table.report(attempt, 0.1, "on")
    assert not table.succeed(attempt, "d")
    assert not table.give_back(attempt, "stopped")
    assert table.get(attempt.job_id).message == "cancelled"
    assert table.unsettled() == [attempt]
    assert table.settle(attempt, "d" * 64)
    assert not table.settle(attempt, "e" * 64)
    assert table.unsettled() == []
    assert table.get(attempt.job_id).log == "d" * 64


def test_only_the_newest_attempt_writes(table: JobTable, monkeypatch: pytest.MonkeyPatch) -> None:
    first = begun(table)
    assert table.lose(first, "killed")
    assert table.get(first.job_id).message == "killed"
    assert table.pending() == []
    monkeypatch.setattr("vlmpress_services.jobs.table.LOST_PAUSE_S", 0)
    assert table.pending() == [first.job_id]
    second = table.begin(first.job_id)
    assert second is not None
    assert (second.number, second.num_lost, second.name) == (2, 1, f"{first.job_id}-2")
    before = table.get(first.job_id)
    for write in (table.lose, table.fail, table.succeed, table.give_back):
        assert not write(first, "late")
    assert not table.report(first, 0.9, "late")
    assert table.get(first.job_id) == before
    assert not table.counts(first)
    assert table.counts(second)
    # A server that stops is no fault of the job.
    assert table.give_back(second, "stopped")
    third = table.begin(first.job_id)
    assert third is not None
    assert (third.number, third.num_lost) == (3, 1)
    assert table.succeed(third, "d" * 64)


def test_what_is_answered_survives_a_loss_of_power(table: JobTable) -> None:
    with table._database.open() as database:
        assert database.execute("PRAGMA synchronous").fetchone()[0] == 2
        assert database.execute("PRAGMA journal_mode").fetchone()[0] == "wal"


def test_a_table_of_a_later_version_is_refused(table: JobTable) -> None:
    table.create("a", SPEC)
    with sqlite3.connect(table.folder / "jobs.sqlite3") as database:
        database.execute("PRAGMA user_version = 9")
    with pytest.raises(InvalidRequestError, match="expected jobs of version 1 or earlier, got 9"):
        JobTable(table.folder.parent).jobs()


def test_pages_hold_every_job_once_and_end_before_they_are_too_long(table: JobTable) -> None:
    ids = [table.create(str(number), SPEC).job_id for number in range(7)][::-1]
    for size in (1, 2, 3, 7, 8, 0):
        found, token = page_of(table, size, "", ())
        while token:
            # What is made meanwhile is on no later page.
            table.create(f"meanwhile {size} {token}", SPEC)
            page, token = page_of(table, size, token, ())
            assert 1 <= len(page) <= size
            found += page
        assert [job.job_id for job in found][-7:] == ids
    long = pb.JobSpec(pipeline=pb.PipelineJob(config_yaml="#" * (1 << 20)))
    table = JobTable(table.folder.parent / "other")
    for number in range(4):
        table.create(str(number), long)
    page, token = page_of(table, 0, "", ())
    assert (len(page), bool(token)) == (2, True)
    page, token = page_of(table, 0, token, ())
    assert (len(page), token) == (2, "")
    huge = pb.JobSpec(pipeline=pb.PipelineJob(config_yaml="#" * (4 << 20)))
    table.create("huge", huge)
    assert len(page_of(table, 0, "", ())[0]) == 1
    for arguments in ((1001, "", ()), (0, "-1", ()), (0, "9" * 19, ()), (0, "", (0,)), (0, "", (99,))):
        with pytest.raises(InvalidRequestError, match=r"^(page_size|page_token|states): expected"):
            page_of(table, *arguments)


def test_a_training_job_says_how_far_it_is_in_numbers(table: JobTable) -> None:
    attempt = begun(table)
    assert not table.get(attempt.job_id).HasField("train_progress")
    progress = pb.TrainProgress(stage=1, num_stages=3, step=7, num_steps=20, loss=0.5, tokens_per_second=100.0)
    assert table.report(attempt, 0.35, "stage 2", progress)
    assert table.get(attempt.job_id).train_progress == progress
    # Another line leaves the numbers as they were.
    assert table.report(attempt, 0.35, "saving")
    assert table.get(attempt.job_id).train_progress == progress
    assert not table.get(attempt.job_id).train_progress.HasField("seconds_left")


def test_a_table_of_an_earlier_version_gets_what_it_lacks(table: JobTable) -> None:
    job = table.create("a", SPEC)
    with sqlite3.connect(table.folder / "jobs.sqlite3") as database:
        for name in ("train_progress", "attempt", "num_lost", "runner", "log"):
            database.execute(f"ALTER TABLE jobs DROP COLUMN {name}")
        database.execute("PRAGMA user_version = 0")
    table = JobTable(table.folder.parent)
    assert table.get(job.job_id) == job
    attempt = table.begin(job.job_id)
    assert attempt is not None
    assert table.report(attempt, 0.5, "half", pb.TrainProgress(step=1))
    assert table.get(job.job_id).train_progress.step == 1


def test_a_lock_is_held_by_one_and_by_who_inherits_it(tmp_path: Path) -> None:
    lock = JobLock.take(tmp_path, "a")
    assert lock is not None
    assert JobLock.take(tmp_path, "a") is None
    command = [sys.executable, "-c", "import sys; print('there', flush=True); sys.stdin.read()"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, pass_fds=(lock.handle,)) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == b"there\n"
        lock.name(child.pid)
        lock.close()
        assert JobLock.take(tmp_path, "a") is None
        assert int((tmp_path / "a.lock").read_text()) == child.pid
        child.kill()
    again = JobLock.take(tmp_path, "a")
    assert again is not None
    again.close()
