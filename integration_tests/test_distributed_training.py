"""A staged training run on Ray Train's workers, two of which are killed, against unbroken ones."""

import os
import signal
from collections.abc import Callable
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from stagetrain import CompressionSetting, Schedule, Stage
from stagetrain.wire import schedule_to_proto
from vlmpress.artifact import Artifact
from vlmpress.job.v1 import job_pb2
from vlmpress_services.jobs.training.settings import RunPlan, plan_of
from vlmpress_services.jobs.training.work import Outcome, run_plan
from vlmpress_services.workers.group import WorkerGroup
from vlmpress_services.workers.ray_runner import RayRunner

NUM_STEPS = 36
SETTINGS = f"training:\n  max_steps: {NUM_STEPS}\n  learning_rate: 0.002\n  save_steps: 5\n"
SCHEDULE = Schedule(
    "custom",
    (
        Stage(fraction=0.4, compression=CompressionSetting(layer=1, stride=4), trainable=("connectors", "language")),
        Stage(fraction=0.3, compression=CompressionSetting(layer=1, stride=2)),
        Stage(fraction=0.3),
    ),
)


def mortal(plan: RunPlan, kills: tuple[tuple[int, int], ...], *, on_progress: Any) -> Outcome:
    """The run, whose first worker kills one of all (step, rank) when the step is done."""
    (plan.folder / f"pid-{os.environ['RANK']}").write_text(str(os.getpid()))

    def report(state: Any) -> None:
        on_progress(state)
        for step, rank in kills:
            mark = plan.folder / f"killed-{step}"
            if state.step == step and not mark.exists():
                mark.touch()
                os.kill(int((plan.folder / f"pid-{rank}").read_text()), signal.SIGKILL)

    return run_plan(plan, on_progress=report)


@pytest.fixture(scope="module")
def train(
    runner: RayRunner, tiny: Artifact, tiny_dataset: Artifact, tmp_path_factory: pytest.TempPathFactory
) -> Callable[..., tuple[Outcome, dict[str, torch.Tensor]]]:
    """Trains with a number of workers and kills (step, rank); gives the outcome and the weights."""

    def run(num_workers: int, batch: int, kills: tuple[tuple[int, int], ...] = ()) -> Any:
        folder = tmp_path_factory.mktemp("run")
        settings = SETTINGS + f"  per_device_train_batch_size: {batch}\n"
        job = job_pb2.TrainJob(settings_yaml=settings, schedule=schedule_to_proto(SCHEDULE), seed=3)
        plan = plan_of(job, tiny.path, tiny_dataset.path, folder)
        group = WorkerGroup(num_workers=num_workers, storage=folder, name="ray")
        outcome = runner.train(mortal, plan, kills, group=group, on_progress=lambda _: None)
        assert len(list(folder.glob("killed-*"))) == len(kills)
        return outcome, load_file(folder / "trained" / "model.safetensors")

    return run


def test_workers_killed_twice_change_no_bit(train: Any) -> None:
    unbroken, expected = train(2, 2)
    broken, weights = train(2, 2, ((7, 0), (22, 1)))
    assert unbroken.resumed_from_step is None
    assert broken.resumed_from_step == 20
    assert broken.losses == unbroken.losses
    assert all(torch.equal(weights[name], value) for name, value in expected.items())
    alone, near = train(1, 4)
    assert alone.losses == pytest.approx(unbroken.losses, abs=1e-5)
    for name, value in expected.items():
        torch.testing.assert_close(near[name], value, rtol=0, atol=1e-5)
