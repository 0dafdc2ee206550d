"""Jobs in SQLite, shared by servers: each change is one statement that names the state and attempt it starts from."""

import sqlite3
import time
import uuid
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from google.protobuf import timestamp_pb2

from vlmpress.job.v1 import job_pb2 as pb
from vlmpress_services.errors import AlreadyExistsError, InvalidRequestError, NotFoundError
from vlmpress_services.jobs.database import JobDatabase
from vlmpress_services.jobs.progress import DETAILS, Details

MAX_REQUEST_ID_CHARS = 128
# Times the attempts that were lost so far: what made them die may pass.
LOST_PAUSE_S = 1.0
ENDED = (pb.JOB_STATE_SUCCEEDED, pb.JOB_STATE_FAILED, pb.JOB_STATE_CANCELLED)
ALIVE = (pb.JOB_STATE_PENDING, pb.JOB_STATE_RUNNING)


@dataclass(frozen=True, kw_only=True, slots=True)
class Attempt:
    """One run of a job; only the newest may change it.

    Attributes:
        job_id: Whose.
        number: Counted from 1.
        runner: Where it runs, "local" or "ray".
        spec: What is to be done.
        num_lost: How many earlier ones were lost with their worker.
    """

    job_id: str
    number: int
    runner: str
    spec: pb.JobSpec
    num_lost: int

    @property
    def name(self) -> str:
        """The same for the same attempt, whichever server asks."""
        return f"{self.job_id}-{self.number}"


class JobTable:
    """The jobs of one store; any thread or process may use it."""

    def __init__(self, store_root: Path) -> None:
        self.folder = Path(store_root) / "jobs"
        self._database = JobDatabase(self.folder)

    def made_by(self, request_id: str, spec: pb.JobSpec) -> pb.Job | None:
        """The job that `request_id` made before, if it did.

        Raises:
            InvalidRequestError: `request_id` is empty or too long.
            AlreadyExistsError: It made a job of another spec.
        """
        _check_request_id(request_id)
        with self._database.open() as database:
            row = database.execute("SELECT * FROM jobs WHERE request_id = ?", (request_id,)).fetchone()
        if row is None:
            return None
        job = _job(row)
        if job.spec != spec:
            raise AlreadyExistsError(
                f"request_id {request_id!r}: expected the spec of job {job.job_id}, which it made, got another one"
            )
        return job

    def create(self, request_id: str, spec: pb.JobSpec) -> pb.Job:
        """A new pending job, or the one that `request_id` made before; errors as `made_by`."""
        _check_request_id(request_id)
        now_ns = time.time_ns()
        with self._database.open() as database:
            database.execute(
                "INSERT INTO jobs (job_id, request_id, spec, state, create_time_ns, update_time_ns)"
                " VALUES (?, ?, ?, ?, ?, ?) ON CONFLICT (request_id) DO NOTHING",
                (uuid.uuid4().hex, request_id, spec.SerializeToString(), pb.JOB_STATE_PENDING, now_ns, now_ns),
            )
        job = self.made_by(request_id, spec)
        assert job is not None
        return job

    def get(self, job_id: str) -> pb.Job:
        """The job as it is now; raises NotFoundError."""
        with self._database.open() as database:
            row = database.execute("SELECT * FROM jobs WHERE job_id = ?", (job_id,)).fetchone()
        if row is None:
            raise NotFoundError(f"job {job_id[:64]!r}: no such job")
        return _job(row)

    def jobs(self, states: Iterable[pb.JobState] = ()) -> list[pb.Job]:
        """All jobs, or those in some states, newest first."""
        return [job for _, job in self.numbered(states)]

    def num_by_state(self) -> dict[str, int]:
        """How many jobs are in each state that a job is in, by the state's name in the protos without its prefix."""
        with self._database.open() as database:
            rows = database.execute("SELECT state, COUNT(*) FROM jobs GROUP BY state").fetchall()
        return {pb.JobState.Name(state).removeprefix("JOB_STATE_"): number for state, number in rows}

    def numbered(
        self, states: Iterable[pb.JobState] = (), *, below: int | None = None, limit: int = -1
    ) -> list[tuple[int, pb.Job]]:
        """Jobs with their numbers, which grow with every job made; newest first.

        Args:
            states: Empty: any.
            below: Only jobs with smaller numbers.
            limit: At most so many; -1: all.
        """
        wanted = tuple(states)
        where = f"state IN ({', '.join('?' * len(wanted))})" if wanted else "TRUE"
        with self._database.open() as database:
            rows = database.execute(
                f"SELECT * FROM jobs WHERE {where} AND (? IS NULL OR number < ?) ORDER BY number DESC LIMIT ?",
                (*wanted, below, below, limit),
            )
            return [(row["number"], _job(row)) for row in rows]

    def pending(self) -> list[str]:
        """Ids of the jobs whose turn it is, oldest first; one that lost attempts waits a while for its next."""
        now_ns, pause_ns = time.time_ns(), int(LOST_PAUSE_S * 1e9)
        with self._database.open() as database:
            rows = database.execute(
                "SELECT job_id FROM jobs WHERE state = ? AND (num_lost = 0 OR update_time_ns + num_lost * ? <= ?)"
                " ORDER BY number",
                (pb.JOB_STATE_PENDING, pause_ns, now_ns),
            )
            return [row["job_id"] for row in rows]

    def running(self) -> list[Attempt]:
        """Attempts that are said to run, oldest job first."""
        return self._attempts("state = ?", pb.JOB_STATE_RUNNING)

    def unsettled(self) -> list[Attempt]:
        """The last attempts of cancelled jobs that nobody has ended in order yet: there is no log."""
        return self._attempts("state = ? AND attempt > 0 AND log = ''", pb.JOB_STATE_CANCELLED)

    def begin(self, job_id: str, runner: str = "local") -> Attempt | None:
        """Pending to running in a new attempt; None when the job is no longer pending."""
        with self._database.open() as database:
            row = database.execute(
                "UPDATE jobs SET state = ?, attempt = attempt + 1, runner = ?, message = 'started',"
                " update_time_ns = ?, revision = revision + 1 WHERE job_id = ? AND state = ? RETURNING *",
                (pb.JOB_STATE_RUNNING, runner, time.time_ns(), job_id, pb.JOB_STATE_PENDING),
            ).fetchone()
        return None if row is None else _attempt(row)

    def report(self, attempt: Attempt, progress: float, message: str, details: Details | None = None) -> bool:
        """Progress (0 to 1) and a line on what is being done; False when the attempt no longer counts."""
        fields: dict[str, float | str | bytes] = {"progress": progress, "message": message}
        for column, kind in DETAILS.items():
            if isinstance(details, kind):
                fields[column] = details.SerializeToString()
        return self._change(attempt, **fields)

    def succeed(self, attempt: Attempt, result: str, log: str = "") -> bool:
        """Running to succeeded, with the digests of result and log; False when the attempt no longer counts."""
        state = pb.JOB_STATE_SUCCEEDED
        return self._change(attempt, state=state, progress=1.0, message="done", result=result, log=log)

    def fail(self, attempt: Attempt, message: str, log: str = "") -> bool:
        """Running to failed; False when the attempt no longer counts."""
        return self._change(attempt, state=pb.JOB_STATE_FAILED, message=" ".join(message.split()), log=log)

    def give_back(self, attempt: Attempt, message: str) -> bool:
        """Running to pending, for no fault of the job; False when the attempt no longer counts."""
        return self._change(attempt, state=pb.JOB_STATE_PENDING, message=message)

    def lose(self, attempt: Attempt, message: str) -> bool:
        """Running to pending, and one lost attempt more; False when the attempt no longer counts."""
        lost = attempt.num_lost + 1
        return self._change(attempt, state=pb.JOB_STATE_PENDING, message=" ".join(message.split()), num_lost=lost)

    def cancel(self, job_id: str) -> pb.Job:
        """Pending or running to cancelled; a job that has ended stays as it is. Raises NotFoundError."""
        self._update(job_id, "state IN (?, ?)", ALIVE, state=pb.JOB_STATE_CANCELLED, message="cancelled")
        return self.get(job_id)

    def settle(self, attempt: Attempt, log: str) -> bool:
        """The log of a job that was cancelled; False when there is one, or when it was not."""
        condition = "state = ? AND attempt = ? AND log = ''"
        return self._update(attempt.job_id, condition, (pb.JOB_STATE_CANCELLED, attempt.number), log=log)

    def counts(self, attempt: Attempt) -> bool:
        """Whether the attempt is the newest and runs."""
        job = self.get(attempt.job_id)
        return job.state == pb.JOB_STATE_RUNNING and job.attempt == attempt.number

    def _attempts(self, condition: str, *values: int) -> list[Attempt]:
        with self._database.open() as database:
            rows = database.execute(f"SELECT * FROM jobs WHERE {condition} ORDER BY number", values)
            return [_attempt(row) for row in rows]

    def _change(self, attempt: Attempt, **fields: float | str | bytes) -> bool:
        values = (pb.JOB_STATE_RUNNING, attempt.number)
        return self._update(attempt.job_id, "state = ? AND attempt = ?", values, **fields)

    def _update(self, job_id: str, condition: str, values: tuple[int, ...], **fields: float | str | bytes) -> bool:
        sets = "".join(f"{name} = ?, " for name in fields)
        with self._database.open() as database:
            cursor = database.execute(
                f"UPDATE jobs SET {sets}update_time_ns = ?, revision = revision + 1 WHERE job_id = ? AND {condition}",
                (*fields.values(), time.time_ns(), job_id, *values),
            )
            return cursor.rowcount == 1


def _check_request_id(request_id: str) -> None:
    if not 1 <= len(request_id) <= MAX_REQUEST_ID_CHARS:
        raise InvalidRequestError(f"request_id: expected 1 to {MAX_REQUEST_ID_CHARS} characters, got {len(request_id)}")


def _attempt(row: sqlite3.Row) -> Attempt:
    return Attempt(
        job_id=row["job_id"],
        number=row["attempt"],
        runner=row["runner"],
        spec=pb.JobSpec.FromString(row["spec"]),
        num_lost=row["num_lost"],
    )


def _job(row: sqlite3.Row) -> pb.Job:
    created, updated = timestamp_pb2.Timestamp(), timestamp_pb2.Timestamp()
    created.FromNanoseconds(row["create_time_ns"])
    updated.FromNanoseconds(row["update_time_ns"])
    details: dict[str, Any] = {name: kind.FromString(row[name]) for name, kind in DETAILS.items() if row[name]}
    return pb.Job(
        job_id=row["job_id"],
        spec=pb.JobSpec.FromString(row["spec"]),
        state=row["state"],
        create_time=created,
        update_time=updated,
        progress=row["progress"],
        message=row["message"],
        result=row["result"],
        revision=row["revision"],
        attempt=row["attempt"],
        log=row["log"],
        **details,
    )
