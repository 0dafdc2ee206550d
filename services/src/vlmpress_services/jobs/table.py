"""Jobs in SQLite, shared by servers and workers: each change is one statement that names the state it starts from."""

import fcntl
import os
import sqlite3
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from google.protobuf import timestamp_pb2

from vlmpress.job.v1 import job_pb2 as pb
from vlmpress_services.errors import InvalidRequestError, NotFoundError
from vlmpress_services.jobs.progress import Details
from vlmpress_services.locking import locked

MAX_REQUEST_ID_CHARS = 128
BUSY_TIMEOUT_S = 30.0
ENDED = (pb.JOB_STATE_SUCCEEDED, pb.JOB_STATE_FAILED, pb.JOB_STATE_CANCELLED)

_SCHEMA = """
CREATE TABLE IF NOT EXISTS jobs (
    number INTEGER PRIMARY KEY,
    job_id TEXT NOT NULL UNIQUE,
    request_id TEXT NOT NULL UNIQUE,
    spec BLOB NOT NULL,
    state INTEGER NOT NULL,
    create_time_ns INTEGER NOT NULL,
    update_time_ns INTEGER NOT NULL,
    progress REAL NOT NULL DEFAULT 0,
    message TEXT NOT NULL DEFAULT '',
    result TEXT NOT NULL DEFAULT '',
    revision INTEGER NOT NULL DEFAULT 1,
    train_progress BLOB NOT NULL DEFAULT x'',
    distill_progress BLOB NOT NULL DEFAULT x''
)
"""
# What tables of earlier versions lack.
_LATER = dict.fromkeys(("train_progress", "distill_progress"), "BLOB NOT NULL DEFAULT x''")
_DETAILS: dict[str, type[Details]] = {"train_progress": pb.TrainProgress, "distill_progress": pb.DistillProgress}


class JobTable:
    """The jobs of one store; opens its file for each call, so any thread or process may use it."""

    def __init__(self, store_root: Path) -> None:
        self.folder = Path(store_root) / "jobs"
        self._path = self.folder / "jobs.sqlite3"
        self._prepared = False

    def create(self, request_id: str, spec: pb.JobSpec) -> pb.Job:
        """A new pending job, or the one that `request_id` made before.

        Raises:
            InvalidRequestError: `request_id` is empty or too long.
        """
        if not 1 <= len(request_id) <= MAX_REQUEST_ID_CHARS:
            raise InvalidRequestError(
                f"request_id: expected 1 to {MAX_REQUEST_ID_CHARS} characters, got {len(request_id)}"
            )
        now_ns = time.time_ns()
        with self._open() as database:
            database.execute(
                "INSERT INTO jobs (job_id, request_id, spec, state, create_time_ns, update_time_ns)"
                " VALUES (?, ?, ?, ?, ?, ?) ON CONFLICT (request_id) DO NOTHING",
                (uuid.uuid4().hex, request_id, spec.SerializeToString(), pb.JOB_STATE_PENDING, now_ns, now_ns),
            )
            row = database.execute("SELECT * FROM jobs WHERE request_id = ?", (request_id,)).fetchone()
        return _job(row)

    def get(self, job_id: str) -> pb.Job:
        """The job as it is now; raises NotFoundError."""
        with self._open() as database:
            row = database.execute("SELECT * FROM jobs WHERE job_id = ?", (job_id,)).fetchone()
        if row is None:
            raise NotFoundError(f"job {job_id[:64]!r}: no such job")
        return _job(row)

    def jobs(self) -> list[pb.Job]:
        """All jobs, newest first."""
        with self._open() as database:
            return [_job(row) for row in database.execute("SELECT * FROM jobs ORDER BY number DESC")]

    def pending(self) -> list[str]:
        """Ids of the jobs nobody has begun, oldest first."""
        return self._ids(pb.JOB_STATE_PENDING)

    def running(self) -> list[str]:
        """Ids of the jobs that say they run, oldest first."""
        return self._ids(pb.JOB_STATE_RUNNING)

    def begin(self, job_id: str) -> bool:
        """Pending to running; False when the job is no longer pending."""
        return self._change(job_id, (pb.JOB_STATE_PENDING,), state=pb.JOB_STATE_RUNNING, message="started")

    def report(self, job_id: str, progress: float, message: str, details: Details | None = None) -> bool:
        """Progress (0 to 1) and a line on what is being done; False when the job no longer runs."""
        fields: dict[str, float | str | bytes] = {"progress": progress, "message": message}
        for column, kind in _DETAILS.items():
            if isinstance(details, kind):
                fields[column] = details.SerializeToString()
        return self._change(job_id, (pb.JOB_STATE_RUNNING,), **fields)

    def succeed(self, job_id: str, result: str) -> bool:
        """Running to succeeded, with the digest of the result; False when the job no longer runs."""
        running = (pb.JOB_STATE_RUNNING,)
        return self._change(job_id, running, state=pb.JOB_STATE_SUCCEEDED, progress=1.0, message="done", result=result)

    def fail(self, job_id: str, message: str) -> bool:
        """Pending or running to failed; False when the job has ended already."""
        alive = (pb.JOB_STATE_PENDING, pb.JOB_STATE_RUNNING)
        return self._change(job_id, alive, state=pb.JOB_STATE_FAILED, message=" ".join(message.split()))

    def cancel(self, job_id: str) -> pb.Job:
        """Pending or running to cancelled; a job that has ended stays as it is. Raises NotFoundError."""
        alive = (pb.JOB_STATE_PENDING, pb.JOB_STATE_RUNNING)
        self._change(job_id, alive, state=pb.JOB_STATE_CANCELLED, message="cancelled")
        return self.get(job_id)

    @contextmanager
    def owned(self, job_id: str) -> Iterator[bool]:
        """Whether this process is now the only one at work on the job; the kernel ends that with the process."""
        self.folder.mkdir(parents=True, exist_ok=True)
        handle = os.open(self.folder / f"{job_id}.lock", os.O_RDWR | os.O_CREAT, 0o644)
        try:
            owned = False
            with suppress(OSError):
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                owned = True
                # For people who look for the process behind a job.
                os.ftruncate(handle, 0)
                os.write(handle, f"{os.getpid()}\n".encode())
            yield owned
        finally:
            os.close(handle)

    def fail_dead(self) -> None:
        """Fails jobs that say they run but have no living worker."""
        for job_id in self.running():
            with self.owned(job_id) as owned:
                if owned:
                    self._change(
                        job_id,
                        (pb.JOB_STATE_RUNNING,),
                        state=pb.JOB_STATE_FAILED,
                        message="the worker died before the job ended",
                    )

    def _ids(self, state: pb.JobState) -> list[str]:
        with self._open() as database:
            rows = database.execute("SELECT job_id FROM jobs WHERE state = ? ORDER BY number", (state,))
            return [row["job_id"] for row in rows]

    def _change(self, job_id: str, from_states: tuple[pb.JobState, ...], **fields: float | str | bytes) -> bool:
        sets = "".join(f"{name} = ?, " for name in fields)
        states = ", ".join("?" * len(from_states))
        with self._open() as database:
            cursor = database.execute(
                f"UPDATE jobs SET {sets}update_time_ns = ?, revision = revision + 1"
                f" WHERE job_id = ? AND state IN ({states})",
                (*fields.values(), time.time_ns(), job_id, *from_states),
            )
            return cursor.rowcount == 1

    @contextmanager
    def _open(self) -> Iterator[sqlite3.Connection]:
        if not self._prepared:
            self._prepare()
        with self._connected() as database, database:
            yield database

    def _prepare(self) -> None:
        """Makes the table; by itself SQLite does not wait for its turn to begin a write-ahead log."""
        with locked(self.folder / "jobs.sqlite3.lock"), self._connected() as database:
            database.execute("PRAGMA journal_mode = WAL")
            database.execute(_SCHEMA)
            there = {row["name"] for row in database.execute("PRAGMA table_info(jobs)")}
            for name in _LATER.keys() - there:
                database.execute(f"ALTER TABLE jobs ADD COLUMN {name} {_LATER[name]}")
        self._prepared = True

    @contextmanager
    def _connected(self) -> Iterator[sqlite3.Connection]:
        database = sqlite3.connect(self._path, timeout=BUSY_TIMEOUT_S)
        try:
            database.row_factory = sqlite3.Row
            yield database
        finally:
            database.close()


def _job(row: sqlite3.Row) -> pb.Job:
    created, updated = timestamp_pb2.Timestamp(), timestamp_pb2.Timestamp()
    created.FromNanoseconds(row["create_time_ns"])
    updated.FromNanoseconds(row["update_time_ns"])
    details: dict[str, Any] = {name: kind.FromString(row[name]) for name, kind in _DETAILS.items() if row[name]}
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
        **details,
    )
