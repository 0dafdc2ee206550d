"""The runner with workers that are coroutines: every end a worker can come to, and servers that stop or die."""

import asyncio
import json
import sqlite3
from collections.abc import Callable
from typing import Any

import pytest

from vlmpress.job.v1 import job_pb2 as pb
from vlmpress_services.jobs import runner as runner_module
from vlmpress_services.jobs.lines import MARK
from vlmpress_services.jobs.locks import JobLock
from vlmpress_services.jobs.places import Place
from vlmpress_services.jobs.runner import JobRunner
from vlmpress_services.jobs.table import Attempt, JobTable

SPEC = pb.JobSpec(pipeline=pb.PipelineJob(config_yaml="seed: 1"))


def line(**said: Any) -> bytes:
    return b"\n" + MARK + json.dumps(said).encode() + b"\n"


class Stage(Place):
    """Runs `act(attempt, hear)`; remembers what it ran and what it was told to stop."""

    def __init__(self, act: Callable[..., Any], *, outlives_server: bool = False) -> None:
        self.act, self.outlives_server = act, outlives_server
        self.ran: list[tuple[str, int]] = []
        self.stopped: list[str] = []
        self.cancelled: list[str] = []
        self.num_running = self.most_running = 0

    async def run(self, attempt: Attempt, lock: JobLock, hear: Any) -> str:
        self.ran.append((attempt.job_id, attempt.number))
        self.num_running += 1
        self.most_running = max(self.most_running, self.num_running)
        try:
            return str(await self.act(attempt, hear))
        except asyncio.CancelledError:
            self.cancelled.append(attempt.name)
            raise
        finally:
            self.num_running -= 1

    async def stop(self, attempt: Attempt) -> None:
        self.stopped.append(attempt.name)


@pytest.fixture
def table(store: Any, monkeypatch: pytest.MonkeyPatch) -> JobTable:
    for name in ("POLL_INTERVAL_S", "LEFT_INTERVAL_S", "RETRY_INTERVAL_S"):
        monkeypatch.setattr(runner_module, name, 0.01)
    monkeypatch.setattr("vlmpress_services.jobs.table.LOST_PAUSE_S", 0.01)
    return JobTable(store.root)


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(30):
        while not condition():
            await asyncio.sleep(0.01)


def ended(table: JobTable, job_id: str) -> bool:
    return table.get(job_id).state not in (pb.JOB_STATE_PENDING, pb.JOB_STATE_RUNNING)


async def forever(attempt: Attempt, hear: Any) -> str:
    await hear(b"begun\n" + line(progress=0.5, message="half"))
    await asyncio.Event().wait()
    return "never"


def runner_of(table: JobTable, store: Any, stage: Stage, name: str = "local", **options: Any) -> JobRunner:
    return JobRunner(table, store, {name: stage}, place=name, **options)


async def test_a_result_is_committed_with_its_log(table: JobTable, store: Any, add_log: Any) -> None:
    digest = add_log("the result").digest

    async def act(attempt: Attempt, hear: Any) -> str:
        await hear(b"hello\n" + line(progress=0.5, message="half"))
        await hear(line(progress=1, message="all") + line(result=digest) + b"bye from " + bytes(store.root) + b"/x\n")
        return "the worker ended with exit code 9"

    job_id = table.create("a", SPEC).job_id
    runner = runner_of(table, store, Stage(act))
    await runner.start()
    await until(lambda: ended(table, job_id))
    await runner.close()
    job = table.get(job_id)
    assert (job.state, job.result, job.attempt) == (pb.JOB_STATE_SUCCEEDED, digest, 1)
    log = store.verify(job.log)
    assert (log.path / "attempt-1.log").read_bytes() == b"hello\nbye from store/x\n"
    assert not list((store.root / "jobs" / "logs").iterdir())


async def test_a_result_that_is_not_in_the_store_fails_the_job(table: JobTable, store: Any) -> None:
    async def act(attempt: Attempt, hear: Any) -> str:
        await hear(line(result="a" * 64))
        return "exit code 0"

    job_id = table.create("a", SPEC).job_id
    runner = runner_of(table, store, Stage(act))
    await runner.start()
    await until(lambda: ended(table, job_id))
    await runner.close()
    assert table.get(job_id).state == pb.JOB_STATE_FAILED
    assert table.get(job_id).message.startswith("result: expected an artifact in the server's store")


async def test_a_lost_worker_s_job_goes_on_until_too_many_are_lost(table: JobTable, store: Any, add_log: Any) -> None:
    digest = add_log("the result").digest

    async def act(attempt: Attempt, hear: Any) -> str:
        await hear(f"attempt {attempt.number}\n".encode())
        if attempt.number == 3 and attempt.job_id == lucky:
            await hear(line(result=digest))
        if attempt.number == 2:
            raise OSError("no more processes")
        return "killed"

    lucky, unlucky = (table.create(name, SPEC).job_id for name in "ab")
    stage = Stage(act)
    runner = runner_of(table, store, stage, max_attempts=3)
    await runner.start()
    await until(lambda: ended(table, lucky) and ended(table, unlucky))
    await runner.close()
    for job_id in (lucky, unlucky):
        assert [number for each, number in stage.ran if each == job_id] == [1, 2, 3]
    assert (table.get(lucky).state, table.get(lucky).result) == (pb.JOB_STATE_SUCCEEDED, digest)
    failed = table.get(unlucky)
    assert (failed.state, failed.attempt) == (pb.JOB_STATE_FAILED, 3)
    assert failed.message == "killed; 3 attempts were lost, and no more may be"
    log = store.verify(failed.log)
    assert {file.path for file in log.manifest.files} == {f"attempt-{number}.log" for number in (1, 2, 3)}
    assert [(log.path / f"attempt-{number}.log").read_text() for number in (1, 2, 3)] == [
        f"attempt {number}\n" for number in (1, 2, 3)
    ]


async def test_a_stopping_server_gives_its_jobs_back_for_nothing(table: JobTable, store: Any) -> None:
    job_id = table.create("a", SPEC).job_id
    stage = Stage(forever)
    for number in (1, 2, 3, 4):
        runner = runner_of(table, store, stage, max_attempts=2)
        await runner.start()
        await until(lambda number=number: table.get(job_id).revision >= 3 * number)
        await runner.close()
        job = table.get(job_id)
        assert (job.state, job.attempt, job.progress) == (pb.JOB_STATE_PENDING, number, 0.5)
        assert "server stopped" in job.message
    assert len(stage.cancelled) == 4


async def test_so_many_jobs_run_at_a_time(table: JobTable, store: Any) -> None:
    async def act(attempt: Attempt, hear: Any) -> str:
        await asyncio.sleep(0.1)
        await hear(line(failed="on purpose"))
        return "exit code 0"

    ids = [table.create(str(number), SPEC).job_id for number in range(7)]
    stage = Stage(act)
    runner = runner_of(table, store, stage, max_jobs=3)
    await runner.start()
    await until(lambda: all(ended(table, job_id) for job_id in ids))
    await runner.close()
    assert stage.most_running == 3
    assert sorted(stage.ran) == sorted((job_id, 1) for job_id in ids)
    assert {table.get(job_id).message for job_id in ids} == {"on purpose"}


async def test_two_servers_never_run_a_job_twice(table: JobTable, store: Any) -> None:
    async def act(attempt: Attempt, hear: Any) -> str:
        assert attempt.job_id not in at_work
        at_work.add(attempt.job_id)
        await asyncio.sleep(0.05)
        at_work.remove(attempt.job_id)
        await hear(line(failed="done"))
        return "exit code 0"

    at_work: set[str] = set()
    ids = [table.create(str(number), SPEC).job_id for number in range(10)]
    stage = Stage(act)
    runners = [runner_of(JobTable(store.root), store, stage, max_jobs=2) for _ in range(3)]
    for runner in runners:
        await runner.start()
    await until(lambda: all(ended(table, job_id) for job_id in ids))
    for runner in runners:
        await runner.close()
    assert sorted(stage.ran) == sorted((job_id, 1) for job_id in ids)


async def test_a_dead_server_s_job_is_lost_and_a_living_one_s_is_not(table: JobTable, store: Any) -> None:
    dead, living = (table.create(name, SPEC).job_id for name in "ab")
    for job_id in (dead, living):
        assert table.begin(job_id) is not None
    with JobLock.take(table.folder, living):  # type: ignore[union-attr]
        stage = Stage(forever)
        runner = runner_of(table, store, stage)
        await runner.start()
        await until(lambda: table.get(dead).progress == 0.5)
        assert (table.get(living).state, table.get(living).attempt) == (pb.JOB_STATE_RUNNING, 1)
        await runner.close()
    assert stage.ran == [(dead, 2)]


async def test_work_elsewhere_outlives_its_server_and_is_found_again(table: JobTable, store: Any, add_log: Any) -> None:
    digest = add_log("the result").digest
    job_id = table.create("a", SPEC).job_id
    first = Stage(forever, outlives_server=True)
    runner = runner_of(table, store, first, "ray")
    await runner.start()
    await until(lambda: table.get(job_id).progress == 0.5)
    await runner.close()
    assert (table.get(job_id).state, first.cancelled, first.stopped) == (
        pb.JOB_STATE_RUNNING,
        [f"{job_id}-1"],
        [],
    )
    # A server that has no way there leaves it alone.
    other = Stage(forever)
    runner = runner_of(table, store, other)
    await runner.start()
    await asyncio.sleep(0.1)
    await runner.close()
    assert not other.ran

    async def act(attempt: Attempt, hear: Any) -> str:
        await hear(b"begun\n" + line(progress=0.5, message="half") + line(result=digest))
        return "ended"

    second = Stage(act, outlives_server=True)
    runner = runner_of(table, store, second, "ray")
    await runner.start()
    await until(lambda: ended(table, job_id))
    await runner.close()
    assert second.ran == [(job_id, 1)]
    job = table.get(job_id)
    assert (job.state, job.result, job.attempt) == (pb.JOB_STATE_SUCCEEDED, digest, 1)
    assert (store.resolve(job.log).path / "attempt-1.log").read_text() == "begun\n"


@pytest.mark.parametrize("outlives_server", [False, True])
async def test_a_cancelled_job_is_stopped_and_keeps_its_log(table: JobTable, store: Any, outlives_server: bool) -> None:
    job_id = table.create("a", SPEC).job_id
    stage = Stage(forever, outlives_server=outlives_server)
    runner = runner_of(table, store, stage)
    await runner.start()
    await until(lambda: table.get(job_id).progress == 0.5)
    table.cancel(job_id)
    await until(lambda: bool(table.get(job_id).log))
    assert (store.resolve(table.get(job_id).log).path / "attempt-1.log").read_text() == "begun\n"
    assert stage.cancelled == stage.stopped == [f"{job_id}-1"]
    # So is one that was cancelled just before its server died.
    left = table.create("b", SPEC).job_id
    await until(lambda: table.get(left).progress == 0.5)
    await runner.close()
    if not outlives_server:
        table.begin(left)
    table.cancel(left)
    runner = runner_of(table, store, stage)
    await runner.start()
    await until(lambda: bool(table.get(left).log))
    await runner.close()
    assert stage.stopped[1:] == [f"{left}-{table.get(left).attempt}"]
    assert table.get(left).state == pb.JOB_STATE_CANCELLED


async def test_a_full_disk_keeps_no_job_from_its_end(
    table: JobTable, store: Any, add_log: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    digest = add_log("the result").digest
    full = True

    def refuse(*_: Any, **__: Any) -> Any:
        raise OSError(28, "No space left on device")

    async def act(attempt: Attempt, hear: Any) -> str:
        await hear(b"hello\n" + line(progress=0.5, message="half"))
        await hear(line(result=digest))
        return "exit code 0"

    original = JobTable.succeed

    def succeed(*arguments: Any) -> bool:
        return bool(refuse() if full else original(*arguments))

    monkeypatch.setattr("vlmpress_services.jobs.attending.AttemptLog", refuse)
    monkeypatch.setattr("vlmpress_services.jobs.attending.commit_logs", refuse)
    monkeypatch.setattr(JobTable, "succeed", succeed)
    job_id = table.create("a", SPEC).job_id
    runner = runner_of(table, store, Stage(act))
    await runner.start()
    await asyncio.sleep(0.2)
    assert table.get(job_id).state == pb.JOB_STATE_RUNNING
    full = False
    await until(lambda: ended(table, job_id))
    await runner.close()
    assert (table.get(job_id).state, table.get(job_id).result) == (pb.JOB_STATE_SUCCEEDED, digest)


async def test_a_table_that_fails_loses_no_job(table: JobTable, store: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    failures = {"begin": 3, "running": 3, "counts": 1}

    def failing(name: str, call: Any) -> Any:
        def ask(*arguments: Any) -> Any:
            # The second of the jobs, so that the first has been begun by then.
            if failures[name] and (name != "begin" or arguments[1] == ids[1]):
                failures[name] -= 1
                raise sqlite3.OperationalError("disk I/O error")
            return call(*arguments)

        return ask

    async def act(attempt: Attempt, hear: Any) -> str:
        await hear(line(failed="done"))
        return "exit code 0"

    ids = [table.create(str(number), SPEC).job_id for number in range(3)]
    for name in failures:
        monkeypatch.setattr(JobTable, name, failing(name, getattr(JobTable, name)))
    stage = Stage(act)
    runner = runner_of(table, store, stage, max_jobs=3)
    await runner.start()
    await until(lambda: all(ended(table, job_id) for job_id in ids))
    await runner.close()
    assert not any(failures.values())
    assert sorted(stage.ran) == sorted((job_id, 1) for job_id in ids)
