"""Reading a log from any place: the same while the job runs and when it has ended."""

import asyncio
import os
import signal
from collections.abc import Iterator
from typing import Any

import grpc
import pytest

from vlmpress.job.v1 import job_pb2
from vlmpress.job.v1 import job_service_pb2 as pb
from vlmpress.job.v1.job_service_pb2_grpc import JobServiceStub
from vlmpress_services.jobs import log_reading
from vlmpress_services.jobs.log_reading import read_log
from vlmpress_services.jobs.logs import AttemptLog, commit_logs, drop_logs, log_folder
from vlmpress_services.jobs.table import JobTable
from vlmpress_services.store.local import LocalStore

SPEC = job_pb2.JobSpec(pipeline=job_pb2.PipelineJob(config_yaml="seed: 1"))


def pieces(store: LocalStore, job: job_pb2.Job, offset: int) -> Iterator[tuple[int, bytes]]:
    while (found := read_log(store, job, 1, offset))[1]:
        yield found
        offset = found[0] + len(found[1])


@pytest.mark.parametrize("num_bytes", [0, 1, 9, 10, 11, 29, 30, 31, 40, 41, 95])
def test_a_log_reads_the_same_from_every_place_now_and_later(
    store: LocalStore, monkeypatch: pytest.MonkeyPatch, num_bytes: int
) -> None:
    monkeypatch.setattr(log_reading, "PART_BYTES", 10)
    monkeypatch.setattr(log_reading, "PIECE_BYTES", 7)
    table = JobTable(store.root)
    job = table.create("a", SPEC)
    attempt = table.begin(job.job_id)
    assert attempt is not None
    text = bytes(33 + number % 90 for number in range(num_bytes))
    log = AttemptLog(log_folder(store.root, job.job_id), 1, part_bytes=10)
    log.write(text)
    log.close()
    # The slow reference: which bytes are kept.
    tail = num_bytes if num_bytes <= 30 else 10 + (num_bytes - 1) % 10 + 1
    kept = {place: text[place] for place in range(num_bytes) if place < 10 or place >= num_bytes - tail}
    for ended in (False, True):
        if ended:
            assert table.fail(attempt, "on purpose", commit_logs(store, log_folder(store.root, job.job_id), attempt))
            drop_logs(log_folder(store.root, job.job_id))
        now = table.get(job.job_id)
        for offset in range(num_bytes + 3):
            found = {
                start + place: byte for start, data in pieces(store, now, offset) for place, byte in enumerate(data)
            }
            assert found == {place: byte for place, byte in kept.items() if place >= offset}, (ended, offset)
            assert all(len(data) <= 7 for _, data in pieces(store, now, offset))


class Script:
    """Stands for workers: processes that run these lines of Python, one an attempt."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *codes: str) -> None:
        self._codes = iter(codes)
        self._start = asyncio.create_subprocess_exec
        monkeypatch.setattr(asyncio, "create_subprocess_exec", self)

    async def __call__(self, *command: str, **options: Any) -> Any:
        return await self._start(command[0], "-u", "-c", next(self._codes), **options)


async def created(stub: JobServiceStub) -> str:
    return str((await stub.CreateJob(pb.CreateJobRequest(request_id="a", spec=SPEC))).job.job_id)


async def test_a_log_is_followed_through_attempts_to_the_job_s_end(
    serving: Any, store: LocalStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vlmpress_services.jobs.table.LOST_PAUSE_S", 0.01)
    first = f"import sys; print('one', {str(store.root)!r} + '/x'); sys.stdin.read(2); sys.exit(3)"
    Script(monkeypatch, first, "print('two'); raise SystemExit(3)", "print('three', end=''); raise SystemExit(3)")
    async with serving("job") as channel:
        stub = JobServiceStub(channel)
        job_id = await created(stub)
        stream = aiter(stub.ReadJobLog(pb.ReadJobLogRequest(job_id=job_id, follow=True), timeout=60))
        piece = await anext(stream)
        assert (piece.attempt, piece.offset, piece.data) == (1, 0, b"one store/x\n")
        # The worker waits: what is there now ends a stream that does not follow.
        request = pb.ReadJobLogRequest(job_id=job_id, offset=4)
        assert [each.data async for each in stub.ReadJobLog(request, timeout=60)] == [b"store/x\n"]
        assert JobTable(store.root).get(job_id).state == job_pb2.JOB_STATE_RUNNING
        os.kill(int((store.root / "jobs" / f"{job_id}.lock").read_text()), signal.SIGKILL)
        rest = [(each.attempt, each.offset, each.data) async for each in stream]
        assert rest == [(2, 0, b"two\n"), (3, 0, b"three")]
        # Afterwards the same comes from the artifact.
        assert store.verify(JobTable(store.root).get(job_id).log)
        for attempt, text in ((1, b"one store/x\n"), (2, b"two\n"), (3, b"three"), (0, b"three")):
            request = pb.ReadJobLogRequest(job_id=job_id, attempt=attempt)
            assert [each.data async for each in stub.ReadJobLog(request, timeout=60)] == [text]
        request = pb.ReadJobLogRequest(job_id=job_id, attempt=1, follow=True)
        seen = [(each.attempt, each.data) async for each in stub.ReadJobLog(request, timeout=60)]
        assert seen == [(1, b"one store/x\n"), (2, b"two\n"), (3, b"three")]


async def test_a_follower_of_a_cancelled_job_gets_its_last_words(serving: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    script = """
import signal, sys, time
signal.signal(signal.SIGTERM, lambda *_: (print("bye"), sys.exit(0)))
print("hello")
time.sleep(600)
"""
    Script(monkeypatch, script)
    async with serving("job") as channel:
        stub = JobServiceStub(channel)
        job_id = await created(stub)
        stream = aiter(stub.ReadJobLog(pb.ReadJobLogRequest(job_id=job_id, follow=True), timeout=60))
        assert (await anext(stream)).data == b"hello\n"
        await stub.CancelJob(pb.CancelJobRequest(job_id=job_id))
        assert b"".join([each.data async for each in stream]) == b"bye\n"


async def test_logs_that_are_not_there_are_refused(serving: Any, refusal: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    async def nothing(_: Any) -> None:
        """A runner that begins no job."""

    monkeypatch.setattr("vlmpress_services.jobs.runner.JobRunner._look", nothing)
    async with serving("job") as channel:
        stub = JobServiceStub(channel)
        job_id = await created(stub)
        code, _ = await refusal(stub.ReadJobLog(pb.ReadJobLogRequest(job_id="none")).read())
        assert code is grpc.StatusCode.NOT_FOUND
        code, text = await refusal(stub.ReadJobLog(pb.ReadJobLogRequest(job_id=job_id, attempt=1)).read())
        assert (code, text) == (grpc.StatusCode.INVALID_ARGUMENT, "attempt: expected at most 0, got 1")
        # A job that has not begun has printed nothing, and one that never will is no reason to wait.
        for follow in (False, True):
            request = pb.ReadJobLogRequest(job_id=job_id, follow=follow)
            assert not [each async for each in stub.ReadJobLog(request, timeout=60)]
            await stub.CancelJob(pb.CancelJobRequest(job_id=job_id))
