"""A distillation on Ray, whose teachers and students are killed, against an unbroken one in this process."""

import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from vlmpress.artifact import Artifact
from vlmpress.job.v1 import job_pb2
from vlmpress_services.jobs.distilling.settings import DistillPlan, plan_of
from vlmpress_services.jobs.distilling.work import OpenTeacher, Outcome, distil, verbalize_teacher
from vlmpress_services.store.local import LocalStore
from vlmpress_services.workers.group import TeacherGroup, WorkerGroup
from vlmpress_services.workers.ray_runner import RayRunner
from vlmpress_services.workers.runners import LocalRunner
from vlmpress_services.workers.teachers import placed, teacher_pool

SETTINGS = """
batch_size: 4
distill: {num_verbalization_steps: 6, num_interaction_steps: 20, num_sft_steps: 6, lora_rank: 4, accumulation_steps: 2,
          save_steps: 3, verbalization_lr: 0.01, interaction_lr: 0.005, sft_lr: 0.005}
"""
Weights = dict[str, torch.Tensor]
Kills = tuple[tuple[int, str], ...]


@pytest.fixture(scope="module")
def teacher(model_store: LocalStore, tiny: Artifact) -> Artifact:
    """Eight layers over the words of the tiny model."""
    from transformers import AutoProcessor

    from vlmpress.artifact.v1 import artifact_pb2
    from vlmpress_services.pipeline.tiny_models import TinyShape, build_llava, build_tower

    processor = AutoProcessor.from_pretrained(tiny.path)
    shape = TinyShape(image_px=32, hidden_size=48, language_intermediate_size=64, max_positions=256)
    model = build_llava(build_tower(shape, seed=1), processor, shape, num_layers=8, seed=1)
    with model_store.draft() as draft:
        model.save_pretrained(draft.path)
        processor.save_pretrained(draft.path)
        return draft.commit(artifact_pb2.Model(model_type="llava"), producer=("test", "0"))


class Noted(OpenTeacher):
    """The run's teacher; its process says who it is and what it was asked for."""

    def __init__(self, plan: DistillPlan) -> None:
        super().__init__(plan)
        self._notes = plan.folder / f"teacher-{os.getpid()}"

    def answer(self, index: int, rank: int, world_size: int) -> Any:
        with self._notes.open("a") as file:
            file.write(f"{index}\n")
        return super().answer(index, rank, world_size)


def mortal(plan: DistillPlan, teachers: Any, kills: Kills, *, on_progress: Any) -> Outcome:
    """The run, whose first student kills a process of each (step, beginning of its note) when the step is done."""
    rank = os.environ["RANK"]
    (plan.folder / f"student-{rank}").write_text(str(os.getpid()))

    def report(state: Any) -> None:
        on_progress(state)
        for step, victim in kills:
            mark = plan.folder / f"killed-{step}"
            if rank == "0" and state.step == step and not mark.exists():
                mark.touch()
                note = min(plan.folder.glob(f"{victim}*"))
                pid = note.name.partition("-")[2] if victim == "teacher-" else note.read_text()
                os.kill(int(pid), signal.SIGKILL)

    return distil(plan, teachers, on_progress=report)


@pytest.fixture(scope="module")
def make_plan(
    tiny: Artifact, teacher: Artifact, tiny_dataset: Artifact, tmp_path_factory: pytest.TempPathFactory
) -> Callable[..., DistillPlan]:
    def make(verbalizers: Path | None = None) -> DistillPlan:
        job = job_pb2.DistillJob(settings_yaml=SETTINGS, seed=3)
        folder = tmp_path_factory.mktemp("run")
        return plan_of(job, teacher.path, tiny.path, tiny_dataset.path, folder, verbalizers)

    return make


@pytest.fixture(scope="module")
def alone(make_plan: Callable[..., DistillPlan]) -> tuple[DistillPlan, list[list[float]], Outcome, Weights]:
    """Teacher and student in this process, unbroken."""
    # As every worker is.
    torch.set_num_threads(1)
    plan, here = make_plan(), LocalRunner()
    group = WorkerGroup(num_workers=1, storage=plan.folder, name="run")
    losses = here.train(verbalize_teacher, plan, group=group, on_progress=lambda _: None)
    outcome = here.train(distil, plan, None, group=group, on_progress=lambda _: None)
    return plan, losses, outcome, weights_of(plan)


def weights_of(plan: DistillPlan) -> Weights:
    return load_file(plan.folder / "distilled" / "model.safetensors")


def on_ray(runner: RayRunner, plan: DistillPlan, num_workers: int, num_teachers: int, kills: Kills) -> Outcome:
    students = WorkerGroup(num_workers=num_workers, storage=plan.folder, name="ray")
    teachers, students = placed(TeacherGroup(num_teachers=num_teachers), students)
    with teacher_pool(Noted, plan, group=teachers) as pool:
        outcome: Outcome = runner.train(mortal, plan, pool, kills, group=students, on_progress=lambda _: None)
    assert len(list(plan.folder.glob("killed-*"))) == len(kills)
    return outcome


def test_killed_teachers_and_students_change_no_bit(
    runner: RayRunner, make_plan: Callable[..., DistillPlan], alone: Any
) -> None:
    first, _, expected, weights = alone
    plan = make_plan(first.teacher_verbalizers)
    # Interaction has the steps 13 to 32.
    kills = ((16, "teacher-"), (22, "student-0"), (36, "student-0"))
    found = on_ray(runner, plan, 1, 2, kills)
    assert found.report == expected.report
    assert found.spec == expected.spec
    assert all(torch.equal(value, weights[name]) for name, value in weights_of(plan).items())
    asked = [list(map(int, path.read_text().split())) for path in plan.folder.glob("teacher-*")]
    assert len(asked) == 3, "two teachers, and one in a killed one's place"
    # Micro-batches of interaction only, two a step.
    assert {index for indices in asked for index in indices} == set(range(12, 52))


def test_two_workers_and_a_teacher_end_as_one_process_does(
    runner: RayRunner, make_plan: Callable[..., DistillPlan], alone: Any
) -> None:
    _, teacher_losses, expected, weights = alone
    plan = make_plan()
    group = WorkerGroup(num_workers=2, storage=plan.folder, name="verbalization")
    losses = runner.train(verbalize_teacher, plan, group=group, on_progress=lambda _: None)
    torch.testing.assert_close(torch.tensor(losses), torch.tensor(teacher_losses), rtol=0, atol=1e-5)
    found = on_ray(runner, plan, 2, 1, ((17, "student-1"), (21, "teacher-")))
    assert found.report.matches == expected.report.matches
    for name, values in expected.report.losses.items():
        assert found.report.losses[name] == pytest.approx(values, abs=1e-5)
    for name, value in weights_of(plan).items():
        torch.testing.assert_close(value, weights[name], rtol=0, atol=1e-4)
