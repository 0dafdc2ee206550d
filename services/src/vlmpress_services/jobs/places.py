"""Where attempts run. `local`: a child process of the server; `ray` is in `workers.submission`."""

import asyncio
import sys
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable
from contextlib import suppress
from pathlib import Path

from vlmpress_services.jobs.locks import JobLock
from vlmpress_services.jobs.logs import log_folder
from vlmpress_services.jobs.table import Attempt

CHUNK_BYTES = 64 << 10
TERMINATE_TIMEOUT_S = 2.0
REST_TIMEOUT_S = 0.5

# Takes a piece of a worker's output.
Hear = Callable[[bytes], Awaitable[None]]


class Place(ABC):
    """Runs attempts."""

    # Whether an attempt goes on without the server, and can be found again.
    outlives_server = False

    @abstractmethod
    async def run(self, attempt: Attempt, lock: JobLock, hear: Hear) -> str:
        """Runs an attempt, or goes on following it, to its end; passes on all its output.

        When this task is cancelled, a worker that cannot outlive the server is ended.

        Args:
            attempt: What to run.
            lock: Held meanwhile; a worker of this machine inherits it.
            hear: Gets the output.

        Returns:
            In which way the worker ended, in words.
        """

    async def stop(self, attempt: Attempt) -> None:
        """Ends an attempt that outlives the task of `run`, if it runs."""
        return


class LocalPlace(Place):
    """Child processes of the server.

    Args:
        store_root: The store's folder.
    """

    def __init__(self, store_root: Path) -> None:
        self._store_root = store_root

    async def run(self, attempt: Attempt, lock: JobLock, hear: Hear) -> str:
        """Runs the worker; a cancelled task ends it."""
        # It goes with the logs when the job has ended.
        spec = log_folder(self._store_root, attempt.job_id) / "spec.binpb"
        spec.parent.mkdir(parents=True, exist_ok=True)
        spec.write_bytes(attempt.spec.SerializeToString())
        worker = await asyncio.create_subprocess_exec(
            *(sys.executable, "-P", "-m", "vlmpress_services.jobs.worker"),
            *("--store", str(self._store_root), "--spec", str(spec), "--exit-with-stdin"),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
            pass_fds=(lock.handle,),
        )
        try:
            lock.name(worker.pid)
            await _heard(worker, hear)
        except asyncio.CancelledError:
            await _end(worker)
            await _last_words(worker, hear)
            raise
        finally:
            await _end(worker)
        return f"the worker ended with exit code {worker.returncode}"


async def _heard(worker: asyncio.subprocess.Process, hear: Hear) -> None:
    """Passes on output until the worker has ended and said its last."""
    assert worker.stdout is not None
    ended = asyncio.create_task(worker.wait())
    reading = asyncio.create_task(worker.stdout.read(CHUNK_BYTES))
    try:
        while True:
            await asyncio.wait((reading, ended), return_when=asyncio.FIRST_COMPLETED)
            # Processes that a worker started may hold the pipe longer than it lives.
            done, _ = await asyncio.wait((reading,), timeout=REST_TIMEOUT_S if ended.done() else None)
            if not done:
                return
            data = reading.result()
            if not data:
                await ended
                return
            await hear(data)
            reading = asyncio.create_task(worker.stdout.read(CHUNK_BYTES))
    finally:
        ended.cancel()
        reading.cancel()
        # Two cannot read at a time.
        await asyncio.wait((reading,))


async def _last_words(worker: asyncio.subprocess.Process, hear: Hear) -> None:
    """Passes on what a worker that was ended printed on its way."""
    assert worker.stdout is not None
    with suppress(TimeoutError):
        async with asyncio.timeout(REST_TIMEOUT_S):
            while data := await worker.stdout.read(CHUNK_BYTES):
                await hear(data)


async def _end(worker: asyncio.subprocess.Process) -> None:
    if worker.returncode is not None:
        return
    with suppress(ProcessLookupError):
        worker.terminate()
    try:
        await asyncio.wait_for(worker.wait(), TERMINATE_TIMEOUT_S)
    except TimeoutError:
        with suppress(ProcessLookupError):
            worker.kill()
        await worker.wait()
