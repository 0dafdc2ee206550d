"""Long work on the wire."""
# ruff: noqa: N802 - gRPC methods keep the names of the protos.

import asyncio
from collections.abc import AsyncIterator

import grpc

from vlmpress.job.v1 import job_pb2
from vlmpress.job.v1 import job_service_pb2 as pb
from vlmpress.job.v1 import job_service_pb2_grpc as pb_grpc
from vlmpress_services.errors import InvalidRequestError, StoppingError
from vlmpress_services.garbage import digests_in
from vlmpress_services.jobs.log_reading import is_complete, read_log
from vlmpress_services.jobs.opening import open_places
from vlmpress_services.jobs.paging import page_of
from vlmpress_services.jobs.runner import JobRunner
from vlmpress_services.jobs.table import ENDED, JobTable
from vlmpress_services.jobs.work import check_spec
from vlmpress_services.serving.interceptors import Context
from vlmpress_services.serving.service import Host, Service

WATCH_INTERVAL_S = 0.1
LOG_INTERVAL_S = 0.25


class JobService(Service, pb_grpc.JobServiceServicer):
    """Starts, shows, cancels and follows jobs."""

    def __init__(self, host: Host) -> None:
        self._store = host.store
        self._table = JobTable(host.store.root)
        self._runner = JobRunner(
            self._table,
            host.store,
            open_places(host),
            place=host.jobs.runner,
            max_jobs=host.jobs.max_jobs,
            max_attempts=host.jobs.max_attempts,
        )
        self._stopping = asyncio.Event()
        host.metrics.read("jobs", "Jobs by state.", "state", self._table.num_by_state)

    def register(self, server: grpc.aio.Server) -> None:
        """Adds the servicer to a server."""
        pb_grpc.add_JobServiceServicer_to_server(self, server)

    async def start(self) -> None:
        """Starts the runner."""
        await self._runner.start()

    async def drain(self) -> None:
        """Ends the watches and gives running jobs back."""
        self._stopping.set()
        await self._runner.close()

    async def CreateJob(self, request: pb.CreateJobRequest, context: Context) -> pb.CreateJobResponse:
        """A new job, or the one this request id made before."""
        return pb.CreateJobResponse(job=await asyncio.to_thread(self._made, request))

    async def GetJob(self, request: pb.GetJobRequest, context: Context) -> pb.GetJobResponse:
        """The job as it is now."""
        return pb.GetJobResponse(job=await asyncio.to_thread(self._table.get, request.job_id))

    async def ListJobs(self, request: pb.ListJobsRequest, context: Context) -> pb.ListJobsResponse:
        """A page of jobs, newest first."""
        asked = (request.page_size, request.page_token, request.states)
        jobs, token = await asyncio.to_thread(page_of, self._table, *asked)
        return pb.ListJobsResponse(jobs=jobs, next_page_token=token)

    async def CancelJob(self, request: pb.CancelJobRequest, context: Context) -> pb.CancelJobResponse:
        """Cancels a job that has not ended; the runner then ends its worker."""
        return pb.CancelJobResponse(job=await asyncio.to_thread(self._table.cancel, request.job_id))

    async def WatchJob(self, request: pb.WatchJobRequest, context: Context) -> AsyncIterator[pb.WatchJobResponse]:
        """The job at once if it is newer than the revision, then at every change seen, until it has ended."""
        revision = request.revision
        while True:
            # Workers write from other processes, so the table is asked, not an event awaited.
            job = await asyncio.to_thread(self._table.get, request.job_id)
            if job.revision > revision:
                revision = job.revision
                yield pb.WatchJobResponse(job=job)
            if job.state in ENDED:
                return
            if self._stopping.is_set():
                raise StoppingError("the server is stopping; watch again with the last revision")
            await asyncio.sleep(WATCH_INTERVAL_S)

    async def ReadJobLog(self, request: pb.ReadJobLogRequest, context: Context) -> AsyncIterator[pb.ReadJobLogResponse]:
        """What attempts printed, from a place on."""
        job = await asyncio.to_thread(self._table.get, request.job_id)
        if request.attempt > job.attempt:
            raise InvalidRequestError(f"attempt: expected at most {job.attempt}, got {request.attempt}")
        attempt, offset = request.attempt or job.attempt, request.offset
        while True:
            offset, data = await asyncio.to_thread(read_log, self._store, job, attempt, offset)
            if data:
                yield pb.ReadJobLogResponse(attempt=attempt, offset=offset, data=data)
                offset += len(data)
            elif not request.follow:
                return
            elif attempt < job.attempt:
                attempt, offset = attempt + 1, 0
            elif is_complete(job):
                return
            elif self._stopping.is_set():
                raise StoppingError("the server is stopping; ask again from the last offset")
            else:
                await asyncio.sleep(LOG_INTERVAL_S)
            # Before the log: what a job that has ended printed is all there.
            job = await asyncio.to_thread(self._table.get, request.job_id)

    def _made(self, request: pb.CreateJobRequest) -> job_pb2.Job:
        # A call that is made again finds its job even when what the job needed is gone by now.
        job = self._table.made_by(request.request_id, request.spec)
        if job is None:
            check_spec(request.spec, self._store)
            # Garbage collection that has begun knows nothing of a new job.
            for digest in digests_in(request.spec):
                self._store.refresh(digest)
            job = self._table.create(request.request_id, request.spec)
        return job


def build(host: Host) -> Service:
    """The service over the server's store."""
    return JobService(host)
