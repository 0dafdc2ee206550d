"""Starts and follows a server's jobs."""

from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing

from vlmpress.job.v1 import job_pb2, job_service_pb2
from vlmpress_services.clients.aio.channel import Client
from vlmpress_services.clients.job import JobCursor, LogCursor, cancel_call, create_call, get_call, list_call


class JobClient(Client):
    """Starts and follows a server's jobs."""

    async def create(self, spec: job_pb2.JobSpec, request_id: str) -> job_pb2.Job:
        """A new job, or the one that `request_id` made before; raises ServiceError."""
        return await self._call(create_call(spec, request_id))

    async def get(self, job_id: str) -> job_pb2.Job:
        """The job as it is now; raises ServiceError."""
        return await self._call(get_call(job_id))

    async def list(self, states: Sequence[job_pb2.JobState] = ()) -> list[job_pb2.Job]:
        """All jobs, or those in some states, newest first; raises ServiceError."""
        return await self._pages(lambda token: list_call(states, token))

    async def cancel(self, job_id: str) -> job_pb2.Job:
        """Asks a job to stop; raises ServiceError."""
        return await self._call(cancel_call(job_id))

    async def watch(self, job_id: str, revision: int = 0) -> AsyncGenerator[job_pb2.Job, None]:
        """The job at every change after a revision, until it has ended; outlives restarts of the server.

        Raises:
            ServiceError: There is no such job, or the server stays away.
        """
        async with aclosing(self._resume(JobCursor(job_id, revision).call)) as jobs:
            async for job in jobs:
                yield job

    async def log(
        self, job_id: str, attempt: int = 0, offset: int = 0, *, follow: bool = False
    ) -> AsyncGenerator[job_service_pb2.ReadJobLogResponse, None]:
        """What a job's workers print; arguments and errors are those of the synchronous client."""
        async with aclosing(self._resume(LogCursor(job_id, attempt, offset, follow).call)) as pieces:
            async for piece in pieces:
                yield piece
