"""Teachers in processes of their own: asked ahead, killed, failing, and each with a GPU that nobody else has."""

import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from verbdistill.losses.heads import Head
from verbdistill.teachers.teacher import TeacherAnswer
from vlmpress_services.errors import InvalidRequestError, WorkersDiedError
from vlmpress_services.workers.group import TeacherGroup, WorkerGroup
from vlmpress_services.workers.ray_runner import RayRunner

END = 12


class Scribe:
    """Answers with who asks for what, and writes down that it was asked."""

    layers, fingerprint = (2, 6), "a" * 64
    head = Head(torch.arange(6.0).view(3, 2).bfloat16())

    def __init__(self, folder: Path, answer_s: float) -> None:
        self._folder, self._answer_s = folder, answer_s

    def answer(self, index: int, rank: int, world_size: int) -> TeacherAnswer:
        with (self._folder / f"pid-{os.getpid()}").open("a") as file:
            file.write(f"{index}\n")
        time.sleep(self._answer_s)
        value = torch.tensor([[float(index), float(rank)]], dtype=torch.bfloat16)
        return TeacherAnswer(targets=(value, value + 1), last=value + 2, labels=torch.tensor([world_size]))


def scribe(folder: Path, answer_s: float = 0.0) -> Scribe:
    return Scribe(folder, answer_s)


def asked(folder: Path) -> dict[int, list[int]]:
    """Indices that each process was asked for."""
    return {int(path.name[4:]): list(map(int, path.read_text().split())) for path in sorted(folder.glob("pid-*"))}


def expected(index: int, rank: int = 0) -> list[float]:
    return [float(index), float(rank)]


def test_answers_come_in_order_and_not_too_many_ahead(runner: RayRunner, tmp_path: Path) -> None:
    from vlmpress_services.workers.teachers import RemoteTeacher, teacher_pool

    with teacher_pool(scribe, tmp_path, group=TeacherGroup(num_teachers=2)) as pool:
        teacher = RemoteTeacher(pool, end=END, rank=1, world_size=2)
        assert (teacher.layers, teacher.fingerprint) == ((2, 6), "a" * 64)
        assert teacher.head.weight.dtype == torch.bfloat16
        assert torch.equal(teacher.head.weight, Scribe.head.weight)
        assert teacher.head.bias is None
        for index in range(3, END):
            answer: Any = teacher.answer(index, {})
            assert answer.targets[1].dtype == torch.bfloat16
            assert answer.targets[0].tolist() == [expected(index, 1)]
            assert answer.labels.tolist() == [2]
            time.sleep(0.2)
            seen = [number for numbers in asked(tmp_path).values() for number in numbers]
            assert max(seen) == min(index + 2, END - 1), "one teacher's share and one more"
        assert sorted(seen) == list(range(3, END)), "each was asked for once"
        assert all(len(numbers) >= 3 for numbers in asked(tmp_path).values())
        # A run that goes on elsewhere asks again.
        assert teacher.answer(0, {}).targets[0].tolist() == [expected(0, 1)]  # type: ignore[union-attr]


def test_a_killed_teacher_is_replaced_and_asked_again(runner: RayRunner, tmp_path: Path) -> None:
    from vlmpress_services.workers.teachers import RemoteTeacher, teacher_pool

    with teacher_pool(scribe, tmp_path, 0.2, group=TeacherGroup(num_teachers=2)) as pool:
        teacher = RemoteTeacher(pool, end=END)
        for index in range(END):
            if index == 4:
                # One that was just asked is at work.
                victim = next(iter(asked(tmp_path)))
                os.kill(victim, signal.SIGKILL)
            answer: Any = teacher.answer(index, {})
            assert answer.targets[0].tolist() == [expected(index)]
    by_process = asked(tmp_path)
    assert len(by_process) == 3
    assert {number for numbers in by_process.values() for number in numbers} == set(range(END))


def test_a_teacher_that_always_dies_ends_the_run(runner: RayRunner, tmp_path: Path) -> None:
    from vlmpress_services.workers.teachers import RemoteTeacher, teacher_pool

    group = TeacherGroup(num_teachers=1, max_restarts=1)
    refusal = pytest.raises(WorkersDiedError, match=r"^teachers: expected each to die at most 1 times")
    with teacher_pool(dying, tmp_path, group=group) as pool, refusal:
        RemoteTeacher(pool, end=END)
    assert (tmp_path / "deaths").read_text() == "xx"


def dying(folder: Path) -> Scribe:
    with (folder / "deaths").open("a") as file:
        file.write("x")
    os.kill(os.getpid(), signal.SIGKILL)
    raise AssertionError


def refusing() -> Scribe:
    raise InvalidRequestError("teacher: expected another")


def test_what_a_teacher_refuses_is_raised_as_it_is(runner: RayRunner) -> None:
    from vlmpress_services.workers.teachers import RemoteTeacher, teacher_pool

    refusal = pytest.raises(InvalidRequestError, match=r"^teacher: expected another$")
    with teacher_pool(refusing, group=TeacherGroup(num_teachers=1)) as pool, refusal:
        RemoteTeacher(pool, end=END)


def test_too_small_a_cluster_is_refused(runner: RayRunner, tmp_path: Path) -> None:
    from vlmpress_services.workers.teachers import placed

    students = WorkerGroup(num_workers=1, storage=tmp_path, name="run")
    with pytest.raises(InvalidRequestError, match=r"^num_workers, num_teachers: expected a cluster of 501 CPU"):
        placed(TeacherGroup(num_teachers=1000), students)
    with pytest.raises(InvalidRequestError, match="expected a cluster of 2 GPU, got 0"):
        placed(TeacherGroup(num_teachers=2, use_gpu=True), students)
    with pytest.raises(InvalidRequestError, match="num_teachers: expected at least 1, got 0"):
        TeacherGroup(num_teachers=0)
    teachers, students = placed(TeacherGroup(num_teachers=2), students)
    assert (teachers.use_gpu, students.use_gpu) == (False, False)


GPUS = """
import json, os, sys
from pathlib import Path
from typing import Any

sys.path.insert(0, sys.argv[2])
from vlmpress_services.workers.group import TeacherGroup, WorkerGroup
from vlmpress_services.workers.ray_cluster import LOOPBACK
import ray
ray.init(address="local", num_cpus=4, num_gpus=4, include_dashboard=False, log_to_driver=False, logging_level="ERROR",
         object_store_memory=10**8, _system_config={"worker_niceness": 0}, _node_ip_address=LOOPBACK)
import gpu_roles
from vlmpress_services.workers.ray_runner import RayRunner
from vlmpress_services.workers.teachers import RemoteTeacher, placed, teacher_pool

folder = Path(sys.argv[1])
teachers, students = placed(TeacherGroup(num_teachers=2), WorkerGroup(num_workers=2, storage=folder, name="run"))
assert teachers.use_gpu and students.use_gpu
with teacher_pool(gpu_roles.Role, folder, group=teachers) as pool:
    RayRunner().train(gpu_roles.ask, folder, pool, group=students, on_progress=print)
ray.shutdown()
"""
ROLES = """
import os
from pathlib import Path

import torch

def note(folder, role):
    (folder / f"{role}-{os.getpid()}").write_text(os.environ["CUDA_VISIBLE_DEVICES"])

class Role:
    layers, head, fingerprint = (1,), None, ""

    def __init__(self, folder):
        self.folder = folder
        note(folder, "teacher")

    def answer(self, index, rank, world_size):
        return (torch.tensor([index, rank]),)

def ask(folder, pool, on_progress):
    import torch.distributed
    from vlmpress_services.workers.teachers import RemoteTeacher

    rank, world_size = torch.distributed.get_rank(), torch.distributed.get_world_size()
    note(folder, "student")
    assert os.environ["ACCELERATE_TORCH_DEVICE"] == "cpu"
    teacher = RemoteTeacher(pool, end=9, rank=rank, world_size=world_size)
    for index in range(9):
        (answer,) = teacher.answer(index, {})
        assert answer.tolist() == [index, rank]
        torch.distributed.all_reduce(answer)
        assert answer.tolist() == [2 * index, 1]
"""


def test_every_process_has_a_gpu_that_no_other_one_sees(tmp_path: Path) -> None:
    import subprocess

    (tmp_path / "code").mkdir()
    (tmp_path / "code" / "gpu_roles.py").write_text(ROLES)
    # Ray begins once in a process, so this cluster has one of its own.
    code = str(tmp_path / "code")
    environment = {**os.environ, "PYTHONPATH": code, "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0"}
    done = subprocess.run(
        [sys.executable, "-c", GPUS, str(tmp_path), code], capture_output=True, text=True, timeout=300, env=environment
    )
    assert done.returncode == 0, done.stderr
    seen = {path.name.partition("-")[0]: [] for path in tmp_path.glob("*-*")}
    for path in tmp_path.glob("*-*"):
        seen[path.name.partition("-")[0]].append(path.read_text())
    assert {role: len(devices) for role, devices in seen.items()} == {"teacher": 2, "student": 2}
    assert sorted(device for devices in seen.values() for device in devices) == ["0", "1", "2", "3"]
