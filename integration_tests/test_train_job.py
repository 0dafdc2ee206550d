"""TrainJob on a real server: watched to its end, its process killed in between."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from safetensors.torch import load_file

from vlmpress.artifact import Artifact
from vlmpress.job.v1 import job_pb2 as pb
from vlmpress_services.clients import EdgeVlmClient, JobClient
from vlmpress_services.errors import ServiceError
from vlmpress_services.store.local import LocalStore

NUM_STEPS = 150
SETTINGS = f"""
training:
  max_steps: {NUM_STEPS}
  learning_rate: 0.002
  per_device_train_batch_size: 2
  save_steps: 10
"""
TIMEOUT_S = 400


def spec(num_workers: int = 1, **changes: Any) -> pb.JobSpec:
    fields = {
        "model": "tiny",
        "dataset": "questions",
        "scheme": "three_stage_deeper",
        "settings_yaml": SETTINGS,
        "num_workers": num_workers,
    }
    return pb.JobSpec(train=pb.TrainJob(**{**fields, **changes}))


@pytest.fixture
def store(own_store: LocalStore, tiny_dataset: Artifact) -> LocalStore:
    return own_store


def followed(client: JobClient, job: pb.Job, until: Callable[[pb.Job], bool] = lambda job: False) -> list[pb.Job]:
    """Every state of a job to its end, or until something is seen."""
    client.timeout_s = TIMEOUT_S
    seen = []
    for state in client.watch(job.job_id):
        seen.append(state)
        if until(state):
            break
    return seen


def kill_worker(store: LocalStore, job: pb.Job) -> list[psutil.Process]:
    """Kills a job's process; gives the processes it had started."""
    process = psutil.Process(int((store.root / "jobs" / f"{job.job_id}.lock").read_text()))
    children = process.children(recursive=True)
    os.kill(process.pid, signal.SIGKILL)
    return children


def weights(store: LocalStore, job: pb.Job) -> dict[str, torch.Tensor]:
    assert job.state == pb.JOB_STATE_SUCCEEDED, job.message
    return load_file(store.verify(job.result).path / "model.safetensors")


@pytest.mark.parametrize("num_workers", [1, 2])
def test_a_killed_job_goes_on_in_another_attempt(launch: Any, store: LocalStore, num_workers: int) -> None:
    server = launch(store.root, "--services", "job")
    with JobClient(server.address) as client:
        killed = client.create(spec(num_workers), "first")
        seen = followed(client, killed, lambda job: job.train_progress.step >= 40)
        assert seen[-1].state == pb.JOB_STATE_RUNNING, seen[-1].message
        left = kill_worker(store, killed)
        again = followed(client, killed, lambda job: job.attempt == 2)
        again += followed(client, killed)
        # One worker with as many samples in each step: quicker than to start two again.
        settings = SETTINGS.replace("batch_size: 2", f"batch_size: {2 * num_workers}")
        unbroken = followed(client, client.create(spec(settings_yaml=settings), "second"))
    gone, alive = psutil.wait_procs(left, timeout=60)
    assert not alive, "processes of the killed worker are left behind"
    assert bool(gone) is (num_workers > 1)
    progress = [job.train_progress for job in again if job.attempt == 2]
    # The checkpoint of step 40 may not have been whole yet.
    assert all(each.step > 30 for each in progress)
    assert progress[-1].step == NUM_STEPS
    assert (progress[-1].stage, progress[-1].num_stages, progress[-1].num_steps) == (2, 3, NUM_STEPS)
    assert progress[-1].loss > 0
    assert progress[-1].tokens_per_second > 0
    assert again[-1].progress == 1
    expected, found = weights(store, unbroken[-1]), weights(store, again[-1])
    assert found.keys() == expected.keys()
    # Two workers add up in another order, and Adam makes much of the noise of a gradient that is zero;
    # that they lose no bit, test_distributed_training says.
    atol = 0 if num_workers == 1 else 1e-4
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=0, atol=atol, msg=lambda text, name=name: f"{name}: {text}")
    assert not list((store.root / "runs").iterdir())


def test_a_cancelled_job_stops(launch: Any, store: LocalStore) -> None:
    server = launch(store.root, "--services", "job")
    before = {each.digest for each in store.list("model")}
    with JobClient(server.address) as client:
        job = client.create(spec(settings_yaml=SETTINGS.replace("150", "100000")), "first")
        followed(client, job, lambda state: state.train_progress.step > 0)
        process = psutil.Process(int((store.root / "jobs" / f"{job.job_id}.lock").read_text()))
        assert client.cancel(job.job_id).state == pb.JOB_STATE_CANCELLED
        assert followed(client, job)[-1].state == pb.JOB_STATE_CANCELLED
        process.wait(30)
        assert [each.state for each in client.list()] == [pb.JOB_STATE_CANCELLED]
        with pytest.raises(ServiceError, match="INVALID_ARGUMENT: scheme: expected one of plain"):
            client.create(spec(scheme="none"), "second")
    assert {each.digest for each in store.list("model")} == before


def test_the_command_starts_and_follows_a_job_whose_model_is_then_served(
    launch: Any, store: LocalStore, tmp_path: Path, png: bytes
) -> None:
    server = launch(store.root, "--services", "job,edgevlm")
    path = tmp_path / "job.json"
    stage = {"fraction": 1.0, "layer": 1, "stride": 4}
    train = {
        "model": "tiny",
        "dataset": "questions",
        "schedule": {"name": "always", "stages": [stage]},
        "settings_yaml": "training: {max_steps: 4, per_device_train_batch_size: 2}",
    }
    path.write_text(json.dumps({"train": train}))
    done = _command("create", str(path), "--server", server.address, "--watch", "--json")
    assert done.returncode == 0, done.stderr
    job = json.loads(done.stdout)
    assert job["train_progress"]["num_steps"] == "4"
    assert store.resolve(job["result"]).path.joinpath("visual_compression.json").is_file()
    with EdgeVlmClient(server.address) as client:
        compressed = client.generate(job["result"], png, "is it a circle ?", 3)
    assert compressed.num_generated_tokens >= 1
    listed = _command("list", "--server", server.address)
    assert f"{job['job_id']} train succeeded 100% {job['result']}" in listed.stdout
    path.write_text(json.dumps({"train": {**train, "model": "nothing"}}))
    refused = _command("create", str(path), "--server", server.address)
    assert refused.returncode == 2
    assert refused.stderr.strip().splitlines()[-1].endswith("NOT_FOUND: artifact 'nothing': no such tag in the store")


def _command(*arguments: str) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-P", "-m", "vlmpress_services.cli", "job", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_S, check=False)
