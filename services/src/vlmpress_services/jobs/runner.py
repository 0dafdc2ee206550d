"""Starts a worker process for each pending job, one at a time, and ends it when its job is cancelled."""

import asyncio
import logging
import sys
from contextlib import suppress

from vlmpress.job.v1 import job_pb2 as pb
from vlmpress_services.jobs.table import JobTable

POLL_INTERVAL_S = 0.1
TERMINATE_TIMEOUT_S = 2.0

_log = logging.getLogger(__name__)


class JobRunner:
    """Runs the jobs of a store from `start` to `close`."""

    def __init__(self, table: JobTable) -> None:
        self._table = table
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Fails what dead workers left, and begins to look for pending jobs."""
        await asyncio.to_thread(self._table.fail_dead)
        self._task = asyncio.create_task(self._run())

    async def close(self) -> None:
        """Ends the running worker; its job fails and says why. Pending jobs wait for the next server."""
        if self._task is not None:
            self._task.cancel()
            with suppress(asyncio.CancelledError):
                await self._task

    async def _run(self) -> None:
        while True:
            try:
                for job_id in await asyncio.to_thread(self._table.pending):
                    await self._run_job(job_id)
                    break
                else:
                    await asyncio.sleep(POLL_INTERVAL_S)
            except Exception:
                # A full disk or a locked table must not end the runner for good.
                _log.exception("jobs cannot be run; trying again")
                await asyncio.sleep(10 * POLL_INTERVAL_S)

    async def _run_job(self, job_id: str) -> None:
        _log.info("job %s: starting a worker", job_id)
        worker = await asyncio.create_subprocess_exec(
            *(sys.executable, "-P", "-m", "vlmpress_services.jobs.worker"),
            *("--store", str(self._table.folder.parent), "--job", job_id),
            stdin=asyncio.subprocess.PIPE,
        )
        try:
            while worker.returncode is None:
                with suppress(TimeoutError):
                    await asyncio.wait_for(worker.wait(), POLL_INTERVAL_S)
                state = (await asyncio.to_thread(self._table.get, job_id)).state
                if state == pb.JOB_STATE_CANCELLED:
                    await _end(worker)
        except asyncio.CancelledError:
            await _end(worker)
            self._table.fail(job_id, "the server stopped before the job ended")
            raise
        # A worker that ends in order has ended its job, or left it to another process.
        if worker.returncode != 0:
            self._table.fail(job_id, f"the worker ended with exit code {worker.returncode}")


async def _end(worker: asyncio.subprocess.Process) -> None:
    with suppress(ProcessLookupError):
        worker.terminate()
    try:
        await asyncio.wait_for(worker.wait(), TERMINATE_TIMEOUT_S)
    except TimeoutError:
        with suppress(ProcessLookupError):
            worker.kill()
        await worker.wait()
