"""Jobs submitted to a Ray cluster with a dashboard, whose server comes and goes."""

import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml

pytest.importorskip("aiohttp", reason="needs vlmpress-services[ray-jobs]")

from vlmpress.artifact import Artifact
from vlmpress.job.v1 import job_pb2 as pb
from vlmpress_services.clients import JobClient
from vlmpress_services.errors import InvalidRequestError
from vlmpress_services.jobs.table import JobTable
from vlmpress_services.pipeline.models import VARIANTS
from vlmpress_services.store.local import LocalStore
from vlmpress_services.workers.submission import RayPlace

TIMEOUT_S = 400
# A log comes late: a short job would have ended before the table says that it has begun.
NUM_STEPS = 400
TOKEN = "5" * 64


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


@pytest.fixture(scope="module")
def head() -> Iterator[tuple[str, psutil.Process]]:
    """A cluster of these tests' own on the loopback address: its Jobs API's address and the process behind it."""
    port = free_port()
    # Sockets of Ray lie below this folder, and their paths must be short.
    with tempfile.TemporaryDirectory(prefix="ray", dir="/tmp", ignore_cleanup_errors=True) as folder:
        options = {
            "node-ip-address": "127.0.0.1",
            "port": free_port(),
            "dashboard-host": "127.0.0.1",
            "dashboard-port": port,
            "dashboard-agent-listen-port": free_port(),
            "ray-client-server-port": free_port(),
            "include-dashboard": "true",
            "num-cpus": 2,
            "object-store-memory": 100 << 20,
            "temp-dir": folder,
        }
        command = [sys.executable, "-m", "ray.scripts.scripts", "start", "--head", "--block", "--disable-usage-stats"]
        environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
        environment |= {
            # Else it listens on every address of the machine.
            "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
            "OMP_NUM_THREADS": "1",
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN": TOKEN,
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        }
        log = Path(folder) / "head.log"
        with log.open("wb") as output:
            child = subprocess.Popen(
                [*command, *(f"--{name}={value}" for name, value in options.items())],
                env=environment,
                stdout=output,
                stderr=subprocess.STDOUT,
            )
        process = psutil.Process(child.pid)
        try:
            _wait_for(f"http://127.0.0.1:{port}/api/version", child, log)
            yield f"http://127.0.0.1:{port}", process
        finally:
            left = process.children(recursive=True)
            child.terminate()
            _, alive = psutil.wait_procs([process, *left], timeout=30)
            for each in alive:
                each.kill()
            child.wait()


def _wait_for(url: str, child: "subprocess.Popen[bytes]", log: Path) -> None:
    request = urllib.request.Request(url, headers={"authorization": f"Bearer {TOKEN}"})
    for _ in range(240):
        assert child.poll() is None, log.read_text()
        try:
            with urllib.request.urlopen(request, timeout=5):
                return
        except OSError:
            time.sleep(0.5)
    raise AssertionError(log.read_text())


def worker_of(head: psutil.Process) -> psutil.Process:
    """The one process that does a job's work."""
    found = []
    for each in head.children(recursive=True):
        # One that has just ended has no command line any more.
        with suppress(psutil.NoSuchProcess):
            command = each.cmdline()
            if "vlmpress_services.jobs.worker" in command and "exec" not in " ".join(command):
                found.append(each)
    assert len(found) == 1, found
    return found[0]


def spec(seed: int, num_steps: int = NUM_STEPS) -> pb.JobSpec:
    settings = f"training: {{max_steps: {num_steps}, per_device_train_batch_size: 2, save_steps: 5}}"
    return pb.JobSpec(
        train=pb.TrainJob(model="tiny", dataset="questions", scheme="plain", settings_yaml=settings, seed=seed)
    )


def until(client: JobClient, job: pb.Job, condition: Callable[[pb.Job], Any]) -> pb.Job:
    deadline_s = time.monotonic() + TIMEOUT_S
    while not condition(found := client.get(job.job_id)):
        assert time.monotonic() < deadline_s, found
        time.sleep(0.1)
    return found


def ended(job: pb.Job) -> bool:
    return job.state not in (pb.JOB_STATE_PENDING, pb.JOB_STATE_RUNNING)


@pytest.fixture
def serve(
    head: tuple[str, psutil.Process],
    own_store: LocalStore,
    tiny_dataset: Artifact,
    launch: Callable[..., Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Callable[[], Any]:
    """Starts a server of `own_store` whose configuration names the cluster."""
    monkeypatch.setenv("RAY_AUTH_TOKEN", TOKEN)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    config = tmp_path / "server.yaml"
    jobs = {"runner": "ray", "cluster": head[0], "max_jobs": 3}
    config.write_text(yaml.safe_dump({"services": ["job"], "jobs": jobs}))
    return lambda: launch(own_store.root, "--config", str(config))


def test_jobs_run_on_a_cluster_and_outlive_their_server(
    head: tuple[str, psutil.Process], own_store: LocalStore, serve: Callable[[], Any]
) -> None:
    # The server stops in the middle; the job goes on, and the next server finds it.
    server = serve()
    with JobClient(server.address) as client:
        first = client.create(spec(1), "first")
        seen = until(client, first, lambda job: job.train_progress.step > 0)
        worker = worker_of(head[1])
        # Else it might end before the next server is there.
        worker.suspend()
        try:
            server.process.send_signal(signal.SIGTERM)
            assert server.process.wait(30) == 0
            assert JobTable(own_store.root).get(first.job_id).state == pb.JOB_STATE_RUNNING
            server = serve()
        finally:
            worker.resume()
    with JobClient(server.address) as client:
        seen = until(client, first, lambda job: job.train_progress.step > seen.train_progress.step)
        assert (seen.state, seen.attempt) == (pb.JOB_STATE_RUNNING, 1), seen.message

        # The worker is killed; another attempt goes on from its checkpoint.
        worker.kill()
        wrong = client.create(pb.JobSpec(pipeline=pb.PipelineJob(config_yaml="sed: 3")), "wrong")
        endless = client.create(spec(2, 100_000), "endless")
        done = until(client, first, ended)
        assert (done.state, done.attempt) == (pb.JOB_STATE_SUCCEEDED, 2), done.message
        assert done.train_progress.step == NUM_STEPS
        assert own_store.verify(done.result).manifest.kind == "model"
        log = own_store.verify(done.log)
        assert {file.path for file in log.manifest.files} == {"attempt-1.log", "attempt-2.log"}
        assert "vlmpress_services.jobs.worker" in (log.path / "attempt-1.log").read_text()

        # A job that cannot be done says why; one that is cancelled ends on the cluster too.
        done = until(client, wrong, ended)
        assert (done.state, done.attempt) == (pb.JOB_STATE_FAILED, 1)
        assert "sed" in done.message
        until(client, endless, lambda job: job.train_progress.step > 0)
        worker = worker_of(head[1])
        client.cancel(endless.job_id)
        assert until(client, endless, lambda job: job.log).state == pb.JOB_STATE_CANCELLED
        worker.wait(30)


def test_the_main_job_is_a_plain_submission(
    head: tuple[str, psutil.Process], main_job: dict[str, Any], tmp_path: Path
) -> None:
    """`RAY_ADDRESS=... ray job submit --working-dir . -- vlmpress run main.yaml`, as docs/operations.md has it."""
    folder, out = tmp_path / "submitted", tmp_path / "out"
    folder.mkdir()
    (folder / "main.yaml").write_text(yaml.safe_dump({**main_job, "out": str(out), "runner": "ray"}))
    environment = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": TOKEN, "RAY_ADDRESS": head[0]}
    ray = Path(sys.executable).with_name("ray")
    done = subprocess.run(
        [ray, "job", "submit", "--working-dir", ".", "--", "vlmpress", "run", "main.yaml"],
        cwd=folder,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    report = json.loads((out / "report.json").read_text())
    assert report["runner"] == "ray"
    assert [variant["name"] for variant in report["variants"]] == list(VARIANTS)
    assert f"report: {out}/report.html" in done.stdout


def test_a_cluster_is_named_in_one_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")
    with pytest.raises(InvalidRequestError, match=r"^job cluster: expected RAY_ADDRESS to be unset or 'http://head'"):
        RayPlace("http://head", tmp_path)
