"""Servers of jobs killed with SIGKILL at random moments: every job is made once and ends once, rightly."""

import random
import sqlite3
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from vlmpress.artifact import Artifact
from vlmpress.job.v1 import job_pb2 as pb
from vlmpress_services.clients import JobClient
from vlmpress_services.errors import ServiceError
from vlmpress_services.jobs.table import JobTable
from vlmpress_services.store.local import LocalStore

SETTINGS = "training: {max_steps: 30, per_device_train_batch_size: 2, save_steps: 5}"
OPTIONS = ("--services", "job")
TIMEOUT_S = 600


class Servers:
    """One server of jobs at a time."""

    def __init__(self, launch: Callable[..., Any], store: Path, config: Path) -> None:
        # No number of kills fails a job here.
        config.write_text("jobs: {max_attempts: 1000, max_jobs: 2}\n")
        self._launch, self._store, self._options = launch, store, (*OPTIONS, "--config", str(config))
        self.start()

    def start(self) -> None:
        self._server = self._launch(self._store, *self._options)
        self.address = self._server.address

    def kill(self) -> None:
        self._server.process.kill()
        self._server.process.wait()


def spec(seed: int) -> pb.JobSpec:
    return pb.JobSpec(
        train=pb.TrainJob(model="tiny", dataset="questions", scheme="plain", settings_yaml=SETTINGS, seed=seed)
    )


def created(servers: Servers, made: pb.JobSpec, request_id: str) -> pb.Job:
    """Asks until a server answers."""
    deadline_s = time.monotonic() + TIMEOUT_S
    while True:
        try:
            with JobClient(servers.address, timeout_s=10) as client:
                return client.create(made, request_id)
        except ServiceError as error:
            if error.code not in ("UNAVAILABLE", "DEADLINE_EXCEEDED", "CANCELLED") or time.monotonic() > deadline_s:
                raise
            time.sleep(0.05)


def test_one_request_id_makes_one_job_however_often_the_server_is_killed(
    launch: Any, own_store: LocalStore, tmp_path: Path, count: Callable[[int, int], int]
) -> None:
    servers = Servers(launch, own_store.root, tmp_path / "server.yaml")
    wanted = pb.JobSpec(pipeline=pb.PipelineJob(config_yaml="sed: 3"))
    ids: list[str] = []
    callers = [
        threading.Thread(target=lambda: ids.append(created(servers, wanted, "once").job_id))
        for _ in range(count(50, 50))
    ]
    for caller in callers[: len(callers) // 2]:
        caller.start()
    servers.kill()
    for caller in callers[len(callers) // 2 :]:
        caller.start()
    servers.start()
    for _ in range(count(4, 1)):
        time.sleep(0.2)
        servers.kill()
        servers.start()
    for caller in callers:
        caller.join()
    assert len(ids) == len(callers)
    assert len(set(ids)) == len(JobTable(own_store.root).jobs()) == 1


def test_jobs_of_killed_servers_end_once_with_the_right_result(
    launch: Any, own_store: LocalStore, tiny_dataset: Artifact, tmp_path: Path, count: Callable[[int, int], int]
) -> None:
    random.seed(0)
    servers = Servers(launch, own_store.root, tmp_path / "server.yaml")
    table = JobTable(own_store.root)
    num_jobs, num_kills = count(4, 2), count(10, 2)
    # What each job gives when nobody is killed.
    quiet = [created(servers, spec(seed), f"quiet {seed}").job_id for seed in range(num_jobs)]
    expected = [weights_digest(own_store, wait(table, job_id)) for job_id in quiet]
    jobs = [created(servers, spec(seed), f"killed {seed}").job_id for seed in range(num_jobs)]
    ends = watched(table.folder / "jobs.sqlite3")
    for _ in range(num_kills):
        time.sleep(random.uniform(0.5, 12))
        servers.kill()
        servers.start()
    assert [weights_digest(own_store, wait(table, job_id)) for job_id in jobs] == expected
    # One commit each of a result, whatever the number of attempts.
    with sqlite3.connect(ends) as database:
        rows = database.execute("SELECT job_id, COUNT(*) FROM ends GROUP BY job_id").fetchall()
    assert sorted(rows) == sorted((job_id, 1) for job_id in jobs)
    attempts = [table.get(job_id).attempt for job_id in jobs]
    assert sum(attempts) <= num_jobs + 2 * num_kills
    assert not list((own_store.root / "runs").iterdir())


def watched(path: Path) -> Path:
    """Has the database count every change of a job to an end."""
    with sqlite3.connect(path, timeout=30) as database:
        database.execute("CREATE TABLE ends (job_id TEXT)")
        database.execute(
            "CREATE TRIGGER ended AFTER UPDATE OF state ON jobs WHEN NEW.state > 2"
            " BEGIN INSERT INTO ends VALUES (NEW.job_id); END"
        )
    return path


def wait(table: JobTable, job_id: str) -> pb.Job:
    deadline_s = time.monotonic() + TIMEOUT_S
    while (job := table.get(job_id)).state in (pb.JOB_STATE_PENDING, pb.JOB_STATE_RUNNING):
        assert time.monotonic() < deadline_s, job
        time.sleep(0.1)
    return job


def weights_digest(store: LocalStore, job: pb.Job) -> str:
    assert job.state == pb.JOB_STATE_SUCCEEDED, job.message
    files = store.verify(job.result).manifest.files
    return next(file.sha256 for file in files if file.path == "model.safetensors")
