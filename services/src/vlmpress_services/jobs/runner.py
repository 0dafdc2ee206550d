"""Begins pending jobs, as many at a time as it may, and follows them to their end; takes up what other servers left."""

import asyncio
import logging
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack, suppress

from vlmpress_services.jobs.attending import Attendance
from vlmpress_services.jobs.locks import JobLock
from vlmpress_services.jobs.places import Place
from vlmpress_services.jobs.table import Attempt, JobTable
from vlmpress_services.store.interface import ArtifactStore

POLL_INTERVAL_S = 0.1
LEFT_INTERVAL_S = 1.0
RETRY_INTERVAL_S = 1.0

_log = logging.getLogger(__name__)


class JobRunner:
    """Runs the jobs of a store from `start` to `close`.

    Args:
        table: The jobs.
        store: Where results are and logs go.
        places: Where attempts can run, by name; what another server began elsewhere is left alone.
        place: The name of where new ones run.
        max_jobs: Jobs that run at a time.
        max_attempts: How many attempts of a job may be lost before it fails.
    """

    def __init__(
        self,
        table: JobTable,
        store: ArtifactStore,
        places: Mapping[str, Place],
        *,
        place: str = "local",
        max_jobs: int = 1,
        max_attempts: int = 3,
    ) -> None:
        self._table, self._store, self._places, self._place = table, store, places, place
        self._max_jobs, self._max_attempts = max_jobs, max_attempts
        self._attending: dict[str, asyncio.Task[None]] = {}
        self._stopping = False
        self._task: asyncio.Task[None] | None = None
        self._next_left_s = 0.0

    async def start(self) -> None:
        """Begins to look for jobs."""
        self._task = asyncio.create_task(self._run())

    async def close(self) -> None:
        """Ends the workers of this machine, whose jobs then wait for the next server; others run on without it."""
        self._stopping = True
        if self._task is not None:
            await self._task
        await asyncio.gather(*self._attending.values())

    async def _run(self) -> None:
        while not self._stopping:
            try:
                await self._look()
                await asyncio.sleep(POLL_INTERVAL_S)
            except Exception:
                # A full disk or a locked table must not end the runner for good.
                _log.exception("jobs cannot be run; trying again")
                await asyncio.sleep(RETRY_INTERVAL_S)

    async def _look(self) -> None:
        self._attending = {job_id: task for job_id, task in self._attending.items() if not task.done()}
        if time.monotonic() >= self._next_left_s:
            self._next_left_s = time.monotonic() + LEFT_INTERVAL_S
            await self._take_over()
        if len(self._attending) >= self._max_jobs:
            return
        for job_id in await asyncio.to_thread(self._table.pending):
            begun = await asyncio.to_thread(self._begun, job_id)
            if begun is None:
                continue
            attempt, lock = begun
            _log.info("job %s: attempt %d", job_id, attempt.number)
            self._attending[job_id] = asyncio.create_task(self._attend(attempt, lock))
            if len(self._attending) >= self._max_jobs:
                return

    async def _take_over(self) -> None:
        """Attends to attempts that nobody attends to any more and that still need it."""
        running, unsettled = await asyncio.to_thread(lambda: (self._table.running(), self._table.unsettled()))
        for attempt in (*running, *unsettled):
            place = self._places.get(attempt.runner)
            if attempt.job_id in self._attending or place is None:
                continue
            lock = await asyncio.to_thread(JobLock.take, self._table.folder, attempt.job_id)
            if lock is None:
                continue
            if attempt in unsettled:
                follow = self._ended_elsewhere
            else:
                follow = self._attend if place.outlives_server else self._lost
            self._attending[attempt.job_id] = asyncio.create_task(follow(attempt, lock))

    def _begun(self, job_id: str) -> tuple[Attempt, JobLock] | None:
        """A new attempt of a pending job; None when somebody else is at it."""
        lock = JobLock.take(self._table.folder, job_id)
        # Somebody who was given up still dies.
        if lock is None:
            return None
        with ExitStack() as failing:
            failing.enter_context(lock)
            attempt = self._table.begin(job_id, self._place)
            if attempt is None:
                return None
            failing.pop_all()
            return attempt, lock

    async def _attend(self, attempt: Attempt, lock: JobLock) -> None:
        place, attendance = self._places[attempt.runner], self._attendance(attempt)

        async def hear(data: bytes) -> None:
            await asyncio.to_thread(attendance.hear, data)

        with lock:
            # Another server may have seen to it between the look at the table and the lock.
            if not await self._counts(attempt):
                return
            running = asyncio.create_task(place.run(attempt, lock, hear))
            while not (await asyncio.wait((running,), timeout=POLL_INTERVAL_S))[0]:
                if self._stopping:
                    await _cancelled(running)
                    if not place.outlives_server:
                        await self._surely(attendance.give_back)
                    return
                if not await self._counts(attempt):
                    await _cancelled(running)
                    await place.stop(attempt)
                    await self._surely(attendance.settle)
                    return
            await self._surely(lambda: attendance.end(_outcome(running)))

    async def _lost(self, attempt: Attempt, lock: JobLock) -> None:
        """Gives up what died with its server."""
        with lock:
            await self._surely(lambda: self._attendance(attempt).lose("its server or its worker was killed"))

    async def _ended_elsewhere(self, attempt: Attempt, lock: JobLock) -> None:
        """Ends what runs of a job that was cancelled while its server died."""
        with lock:
            await self._places[attempt.runner].stop(attempt)
            await self._surely(self._attendance(attempt).settle)

    async def _counts(self, attempt: Attempt) -> bool:
        try:
            return await asyncio.to_thread(self._table.counts, attempt)
        except Exception:
            _log.exception("job %s: cannot be looked up", attempt.job_id)
            return True

    async def _surely(self, write: Callable[[], None]) -> None:
        """How a job ended must reach the table, however long a disk is full."""
        while True:
            try:
                await asyncio.to_thread(write)
                return
            except Exception:
                _log.exception("a job's end cannot be written")
                if self._stopping:
                    return
                await asyncio.sleep(RETRY_INTERVAL_S)

    def _attendance(self, attempt: Attempt) -> Attendance:
        return Attendance(self._table, self._store, attempt, self._max_attempts)


async def _cancelled(task: "asyncio.Task[str]") -> None:
    task.cancel()
    with suppress(asyncio.CancelledError, Exception):
        await task


def _outcome(running: "asyncio.Task[str]") -> str:
    error = running.exception()
    if error is None:
        return running.result()
    _log.error("a worker cannot be run", exc_info=error)
    return "the worker cannot be run"
