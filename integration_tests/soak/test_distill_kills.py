"""A distillation whose worker is killed at random steps ends with the weights of one that was left alone."""

import os
import random
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from vlmpress.artifact import Artifact
from vlmpress.job.v1 import job_pb2 as pb
from vlmpress_services.clients import JobClient
from vlmpress_services.store.local import LocalStore

# Word of a step comes up to half a second late; the job must not have ended by then.
NUM_STEPS, LAST_KILL = 212, 140
SETTINGS = """
batch_size: 4
distill: {num_verbalization_steps: 4, num_interaction_steps: 200, num_sft_steps: 4, lora_rank: 4, save_steps: 5}
"""


def spec() -> pb.JobSpec:
    job = pb.DistillJob(teacher="tiny", student="tiny", dataset="questions", settings_yaml=SETTINGS)
    return pb.JobSpec(distill=job)


def weights(store: LocalStore, job: pb.Job) -> dict[str, torch.Tensor]:
    assert job.state == pb.JOB_STATE_SUCCEEDED, job.message
    return load_file(store.verify(job.result).path / "model.safetensors")


def test_a_distillation_killed_at_random_steps_loses_no_bit(
    launch: Any, own_store: LocalStore, tiny_dataset: Artifact, tmp_path: Path, count: Callable[[int, int], int]
) -> None:
    config = tmp_path / "server.yaml"
    config.write_text("jobs: {max_attempts: 1000}\n")
    server = launch(own_store.root, "--services", "job", "--config", str(config))
    random.seed(0)
    num_kills = count(10, 1)
    with JobClient(server.address) as client:
        *_, quiet = client.watch(client.create(spec(), "quiet").job_id)
        job_id = client.create(spec(), "killed").job_id
        for number, step in enumerate(sorted(random.sample(range(1, LAST_KILL), num_kills)), 1):
            for job in client.watch(job_id):
                assert job.attempt <= number, job.message
                if job.attempt == number and job.state == pb.JOB_STATE_RUNNING and job.distill_progress.step >= step:
                    break
            process_id = int((own_store.root / "jobs" / f"{job_id}.lock").read_text())
            os.kill(process_id, signal.SIGKILL)
        *_, killed = client.watch(job_id)
    assert killed.attempt == num_kills + 1
    expected = weights(own_store, quiet)
    found = weights(own_store, killed)
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], value) for name, value in expected.items())
