"""Starts and follows a server's jobs."""

import math
from collections.abc import Iterator, Sequence
from typing import Any

from vlmpress.job.v1 import job_pb2, job_service_pb2, job_service_pb2_grpc
from vlmpress_services.clients.call import Call, Page
from vlmpress_services.clients.channel import Client


class JobClient(Client):
    """Starts and follows a server's jobs."""

    def create(self, spec: job_pb2.JobSpec, request_id: str) -> job_pb2.Job:
        """A new job, or the one that `request_id` made before; raises ServiceError."""
        return self._call(create_call(spec, request_id))

    def get(self, job_id: str) -> job_pb2.Job:
        """The job as it is now; raises ServiceError."""
        return self._call(get_call(job_id))

    def list(self, states: Sequence[job_pb2.JobState] = ()) -> list[job_pb2.Job]:
        """All jobs, or those in some states, newest first; raises ServiceError."""
        return self._pages(lambda token: list_call(states, token))

    def cancel(self, job_id: str) -> job_pb2.Job:
        """Asks a job to stop; raises ServiceError."""
        return self._call(cancel_call(job_id))

    def watch(self, job_id: str, revision: int = 0) -> Iterator[job_pb2.Job]:
        """The job at every change after a revision, until it has ended; outlives restarts of the server.

        Raises:
            ServiceError: There is no such job, or the server stays away.
        """
        yield from self._resume(JobCursor(job_id, revision).call)

    def log(
        self, job_id: str, attempt: int = 0, offset: int = 0, *, follow: bool = False
    ) -> Iterator[job_service_pb2.ReadJobLogResponse]:
        """What a job's workers print, piece by piece.

        Args:
            job_id: Of the job.
            attempt: Which run of it, from 1; 0: the newest.
            offset: First byte wanted; the middle of a long log is not kept, pieces after it say where they begin.
            follow: Goes on, with later attempts too, until the job has ended; outlives restarts of the server.

        Raises:
            ServiceError: There is no such job or attempt, or the server stays away.
        """
        yield from self._resume(LogCursor(job_id, attempt, offset, follow).call)


class JobCursor:
    """A place in the changes of a job."""

    def __init__(self, job_id: str, revision: int) -> None:
        self._job_id = job_id
        self._revision = revision

    def call(self) -> Call[job_pb2.Job]:
        """The call for the changes after this place; reading its answer moves it."""
        request = job_service_pb2.WatchJobRequest(job_id=self._job_id, revision=self._revision)
        return _call("WatchJob", request, self._read, math.inf)

    def _read(self, response: job_service_pb2.WatchJobResponse) -> job_pb2.Job:
        self._revision = response.job.revision
        return response.job


class LogCursor:
    """A place in what a job's workers print."""

    def __init__(self, job_id: str, attempt: int, offset: int, follow: bool) -> None:
        self._job_id, self._follow = job_id, follow
        self._attempt, self._offset = attempt, offset

    def call(self) -> Call[job_service_pb2.ReadJobLogResponse]:
        """The call for what comes after this place; reading its answer moves it."""
        request = job_service_pb2.ReadJobLogRequest(
            job_id=self._job_id, attempt=self._attempt, offset=self._offset, follow=self._follow
        )
        return _call("ReadJobLog", request, self._read, math.inf)

    def _read(self, response: job_service_pb2.ReadJobLogResponse) -> job_service_pb2.ReadJobLogResponse:
        self._attempt, self._offset = response.attempt, response.offset + len(response.data)
        return response


def create_call(spec: job_pb2.JobSpec, request_id: str) -> Call[job_pb2.Job]:
    """The call of `create`."""
    return _call("CreateJob", job_service_pb2.CreateJobRequest(spec=spec, request_id=request_id), _job)


def get_call(job_id: str) -> Call[job_pb2.Job]:
    """The call of `get`."""
    return _call("GetJob", job_service_pb2.GetJobRequest(job_id=job_id), _job)


def list_call(states: Sequence[job_pb2.JobState], page_token: str) -> Call[Page[job_pb2.Job]]:
    """The call for one page of `list`."""
    request = job_service_pb2.ListJobsRequest(states=states, page_token=page_token)
    return _call("ListJobs", request, lambda response: Page(items=response.jobs, next_token=response.next_page_token))


def cancel_call(job_id: str) -> Call[job_pb2.Job]:
    """The call of `cancel`."""
    return _call("CancelJob", job_service_pb2.CancelJobRequest(job_id=job_id), _job)


def _job(response: Any) -> job_pb2.Job:
    return response.job


def _call(method: str, request: Any, read: Any, timeout_s: float | None = None) -> Call[Any]:
    return Call(
        stub=job_service_pb2_grpc.JobServiceStub, method=method, request=request, read=read, timeout_s=timeout_s
    )
