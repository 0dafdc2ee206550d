"""An attempt's end when what it needs fails: nothing is said that is not so, and nothing is lost."""

import json
from typing import Any

import pytest

from vlmpress.artifact import Artifact
from vlmpress.job.v1 import job_pb2 as pb
from vlmpress_services.errors import RemoteStoreError
from vlmpress_services.jobs.attending import Attendance
from vlmpress_services.jobs.lines import MARK
from vlmpress_services.jobs.logs import log_folder
from vlmpress_services.jobs.table import Attempt, JobTable
from vlmpress_services.store.local import LocalStore

SPEC = pb.JobSpec(pipeline=pb.PipelineJob(config_yaml="seed: 1"))


def line(**said: Any) -> bytes:
    return b"\n" + MARK + json.dumps(said).encode() + b"\n"


@pytest.fixture
def table(store: LocalStore) -> JobTable:
    return JobTable(store.root)


@pytest.fixture
def attempt(table: JobTable) -> Attempt:
    begun = table.begin(table.create("a", SPEC).job_id)
    assert begun is not None
    return begun


@pytest.fixture
def attendance(table: JobTable, store: LocalStore, attempt: Attempt) -> Attendance:
    return Attendance(table, store, attempt, 3)


class Failing:
    """Raises so many times in place of a call."""

    def __init__(self, call: Any, error: Exception, times: int) -> None:
        self._call, self._error, self._times = call, error, times

    def __call__(self, *arguments: Any, **options: Any) -> Any:
        if self._times:
            self._times -= 1
            raise self._error
        return self._call(*arguments, **options)


@pytest.mark.parametrize("error", [RemoteStoreError("store: no answer"), OSError(5, "Input/output error")])
def test_a_store_that_is_away_does_not_fail_a_job_that_ended_well(
    table: JobTable,
    store: LocalStore,
    attempt: Attempt,
    attendance: Attendance,
    add_log: Any,
    monkeypatch: pytest.MonkeyPatch,
    error: Exception,
) -> None:
    result: Artifact = add_log("the result")
    monkeypatch.setattr(store, "find", Failing(store.find, error, 2))
    attendance.hear(b"hello\n" + line(result=result.digest))
    for _ in range(2):
        with pytest.raises(type(error)):
            attendance.end("exit code 0")
        assert table.get(attempt.job_id).state == pb.JOB_STATE_RUNNING
    attendance.end("exit code 0")
    job = table.get(attempt.job_id)
    assert (job.state, job.result) == (pb.JOB_STATE_SUCCEEDED, result.digest)
    assert (store.verify(job.log).path / "attempt-1.log").read_text() == "hello\n"


def test_a_cancelled_job_s_log_waits_for_room_on_the_disk(
    table: JobTable, store: LocalStore, attempt: Attempt, attendance: Attendance, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = log_folder(store.root, attempt.job_id)
    full = Failing(store.draft, OSError(28, "No space left on device"), 2)
    monkeypatch.setattr(store, "draft", full)
    attendance.hear(b"hello\n")
    table.cancel(attempt.job_id)
    for _ in range(2):
        attendance.settle()
        assert table.unsettled() == [attempt]
        assert (folder / "attempt-1.0").read_bytes() == b"hello\n"
    attendance.settle()
    assert table.unsettled() == []
    assert (store.verify(table.get(attempt.job_id).log).path / "attempt-1.log").read_text() == "hello\n"
    assert not folder.exists()


def test_a_job_that_is_cancelled_as_it_ends_keeps_its_log(
    table: JobTable, store: LocalStore, attempt: Attempt, attendance: Attendance, add_log: Any
) -> None:
    attendance.hear(b"hello\n" + line(result=add_log("the result").digest))
    table.cancel(attempt.job_id)
    attendance.end("exit code 0")
    job = table.get(attempt.job_id)
    assert (job.state, job.result) == (pb.JOB_STATE_CANCELLED, "")
    assert (store.verify(job.log).path / "attempt-1.log").read_text() == "hello\n"


def test_a_log_that_cannot_be_an_artifact_stays_where_it_is(
    table: JobTable, store: LocalStore, attempt: Attempt, attendance: Attendance, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store, "draft", Failing(store.draft, OSError(28, "No space left on device"), 1))
    attendance.hear(b"hello\n" + line(failed="on purpose"))
    attendance.end("exit code 0")
    job = table.get(attempt.job_id)
    assert (job.state, job.message, job.log) == (pb.JOB_STATE_FAILED, "on purpose", "")
    assert (log_folder(store.root, attempt.job_id) / "attempt-1.0").read_bytes() == b"hello\n"
