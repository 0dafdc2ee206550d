"""Starts and follows a server's jobs."""

from collections.abc import Iterator
from typing import Any

from vlmpress.job.v1 import job_pb2, job_service_pb2, job_service_pb2_grpc
from vlmpress_services.clients.channel import Client, typed_errors


class JobClient(Client):
    """Starts and follows a server's jobs."""

    def create(self, spec: job_pb2.JobSpec, request_id: str) -> job_pb2.Job:
        """A new job, or the one that `request_id` made before; raises ServiceError."""
        request = job_service_pb2.CreateJobRequest(spec=spec, request_id=request_id)
        with typed_errors():
            return self._job_stub().CreateJob(request, timeout=self.timeout_s).job

    def get(self, job_id: str) -> job_pb2.Job:
        """The job as it is now; raises ServiceError."""
        with typed_errors():
            return self._job_stub().GetJob(job_service_pb2.GetJobRequest(job_id=job_id), timeout=self.timeout_s).job

    def list(self) -> list[job_pb2.Job]:
        """All jobs, newest first; raises ServiceError."""
        with typed_errors():
            return list(self._job_stub().ListJobs(job_service_pb2.ListJobsRequest(), timeout=self.timeout_s).jobs)

    def cancel(self, job_id: str) -> job_pb2.Job:
        """Asks a job to stop; raises ServiceError."""
        with typed_errors():
            return (
                self._job_stub().CancelJob(job_service_pb2.CancelJobRequest(job_id=job_id), timeout=self.timeout_s).job
            )

    def watch(self, job_id: str, revision: int = 0) -> Iterator[job_pb2.Job]:
        """The job at every change after a revision, until it has ended; raises ServiceError."""
        request = job_service_pb2.WatchJobRequest(job_id=job_id, revision=revision)
        with typed_errors():
            for response in self._job_stub().WatchJob(request):
                yield response.job

    def _job_stub(self) -> Any:
        return self._stub(job_service_pb2_grpc.JobServiceStub)
