"""DistillJob on a real server: its process killed beside a teacher on Ray, whose job goes on by itself."""

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from safetensors.torch import load_file

from vlmpress.artifact import Artifact
from vlmpress.job.v1 import job_pb2 as pb
from vlmpress_services.clients import EdgeVlmClient, JobClient
from vlmpress_services.store.local import LocalStore

SETTINGS = """
batch_size: 4
distill: {num_verbalization_steps: 4, num_interaction_steps: 60, num_sft_steps: 4, lora_rank: 4, save_steps: 5}
"""
TIMEOUT_S = 400


@pytest.fixture
def store(own_store: LocalStore, tiny_dataset: Artifact) -> LocalStore:
    return own_store


def spec(**fields: Any) -> pb.JobSpec:
    given = {"teacher": "tiny", "student": "tiny", "dataset": "questions", "settings_yaml": SETTINGS}
    return pb.JobSpec(distill=pb.DistillJob(**(given | fields)))


def followed(client: JobClient, job: pb.Job, step: int | None = None) -> list[pb.Job]:
    """Every state of a job to its end, or to a step."""
    client.timeout_s = TIMEOUT_S
    seen = []
    for state in client.watch(job.job_id):
        seen.append(state)
        if step is not None and state.distill_progress.step >= step:
            break
    return seen


def weights(store: LocalStore, job: pb.Job) -> dict[str, torch.Tensor]:
    assert job.state == pb.JOB_STATE_SUCCEEDED, job.message
    return load_file(store.verify(job.result).path / "model.safetensors")


def test_a_killed_job_goes_on_with_the_teacher_elsewhere(
    launch: Any, store: LocalStore, png: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    # As many threads as a worker on Ray has: sums in another order would be another result.
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    server = launch(store.root, "--services", "job,edgevlm,verbdistill")
    with JobClient(server.address) as client:
        killed = client.create(spec(num_teachers=2), "first")
        seen = followed(client, killed, 20)
        assert seen[-1].state == pb.JOB_STATE_RUNNING, seen[-1].message
        process = psutil.Process(int((store.root / "jobs" / f"{killed.job_id}.lock").read_text()))
        children = process.children(recursive=True)
        os.kill(process.pid, signal.SIGKILL)
        again = followed(client, killed)
        # Without Ray.
        unbroken = followed(client, client.create(spec(), "second"))[-1]
    assert children
    assert not psutil.wait_procs(children, timeout=60)[1], "processes of the killed job are left behind"
    assert again[-1].attempt == 2
    steps = [job.distill_progress.step for job in again if job.attempt == 2]
    # A worker on Ray lives some seconds longer than its job, and may have got far.
    assert min(steps) > 15
    last = unbroken.distill_progress
    assert (last.phase, last.phase_step, last.num_phase_steps, last.step, last.num_steps) == ("sft", 4, 4, 72, 72)
    expected = weights(store, unbroken)
    assert all(torch.equal(value, expected[name]) for name, value in weights(store, again[-1]).items())
    assert not list((store.root / "runs").iterdir())
    with EdgeVlmClient(server.address) as models:
        assert models.generate(again[-1].result, png, "is it a circle ?", 3).num_generated_tokens >= 1
    assert layers_that_speak(server.address, store, store.resolve(again[-1].result)) == [1, 2]


def layers_that_speak(address: str, store: LocalStore, model: Artifact) -> list[int]:
    import grpc

    from vlmpress.verbdistill.v1 import verbdistill_service_pb2, verbdistill_service_pb2_grpc

    told = store.resolve(model.manifest.parents[1].digest)
    kept = next(each.digest for each in told.manifest.parents if each.role == "student_verbalizers")
    request = verbdistill_service_pb2.VerbalizeRequest(model=model.digest, verbalizers=kept, question="is it blue ?")
    with grpc.insecure_channel(address) as channel:
        response = verbdistill_service_pb2_grpc.VerbDistillServiceStub(channel).Verbalize(request)
    return [each.layer for each in response.layers]


def test_the_command_distils_with_workers_and_a_teacher_on_ray(launch: Any, store: LocalStore, tmp_path: Path) -> None:
    server = launch(store.root, "--services", "job")
    settings = tmp_path / "distill.yaml"
    settings.write_text(SETTINGS.replace(": 60", ": 3"))
    models = ("--teacher", "tiny", "--student", "tiny", "--dataset", "questions")
    sizes = ("--num-workers", "2", "--num-teachers", "1", "--seed", "1")
    command = [sys.executable, "-P", "-m", "vlmpress_services.cli", "job", "distill", str(settings), *models, *sizes]
    done = subprocess.run(
        [*command, "--server", server.address, "--watch"],
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert " distill succeeded 100% " in done.stdout
